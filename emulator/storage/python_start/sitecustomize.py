"""What a Python that an app has started does first: it gets the rewriting of the one that did.

Only on the rungs without namespaces; the environment says where this is and which place it has. The
sitecustomize that would have been loaded otherwise is loaded after it.
"""

import os
import sys


def _begin() -> None:
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != folder]
    rest = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != folder]
    if rest:
        os.environ["PYTHONPATH"] = os.pathsep.join(rest)
    else:
        os.environ.pop("PYTHONPATH", None)
    told = os.environ.get("FAL_EMULATOR_PLACE")
    if told:
        import json

        home = json.loads(told)["home"]
        sys.path.append(home)
        try:
            from emulator.storage.natives import begin_in_a_program

            begin_in_a_program(told)
        except Exception as error:
            sys.exit(f"pytest-fal: this Python cannot be led to the emulated /data: {error!r}")
        finally:
            sys.path.remove(home)
    del sys.modules["sitecustomize"]
    try:
        __import__("sitecustomize")
    except ImportError:
        sys.modules["sitecustomize"] = type(sys)("sitecustomize")


_begin()
