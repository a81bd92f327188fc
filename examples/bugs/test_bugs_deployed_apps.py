"""What works where it is written and not once it is deployed: apps that were pickled.

`fal deploy` and `fal run` send an app as a pickle, by value, with the SDK. So does
`isolation="process"` here; `load="import"` is the other way, without a pickle.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version

import fal
import pytest
from fal.toolkit import File
from gallery import bug
from pydantic import BaseModel

from emulator.errors import EmulatorError

TOPIC = "Apps that work until they are deployed"


@bug(
    "N10",
    symptom="my app works locally, and once it is deployed every request is answered 422",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_postponed_annotations_do_not_go_along(fal_runner, tmp_path, monkeypatch):
    """Names that only annotations refer to are lost where annotations are postponed.

    Production: every call to a deployed app fails with 422, "Field required" of a query parameter
        that is the endpoint's input. Locally, and with `fal run --local`, it works.
    Expected: the same app, the same answers.
    Happens: with `from __future__ import annotations` an annotation is text. What a pickled
        function refers to goes along with it, and the model in the text is none of that: the web
        framework does not find it and takes the input for a query parameter.
    Avoid: no postponed annotations in the module of an app.
    """
    source = """
import fal
from pydantic import BaseModel

class Input(BaseModel):
    prompt: str

class App(fal.App):
    @fal.endpoint("/")
    def answer(self, input: Input) -> dict:
        return {"prompt": input.prompt}
"""
    (tmp_path / "postponed.py").write_text(f"from __future__ import annotations\n{source}")
    (tmp_path / "eager.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    import eager
    import postponed

    if version("pydantic").startswith("2.5."):
        pytest.skip("with pydantic 2.5 the deployed app does not even start")
    request = {"prompt": "a cat"}
    assert fal_runner(postponed.App).post("/", json=request).status_code == 200
    deployed = fal_runner(postponed.App, isolation="process")
    assert deployed.post("/", json=request).status_code == 422

    deployed = fal_runner(eager.App, isolation="process")
    assert deployed.post("/", json=request).json() == {"prompt": "a cat"}


class Input(BaseModel):
    text: str = "hello"


class Uploads(fal.App):
    @fal.endpoint("/late")
    def imports_the_toolkit_late(self, input: Input) -> dict:
        from fal.toolkit import File as LateFile

        return {"url": LateFile.from_bytes(input.text.encode(), file_name="a.txt").url}

    @fal.endpoint("/early")
    def has_imported_the_toolkit(self, input: Input) -> dict:
        return {"url": File.from_bytes(input.text.encode(), file_name="a.txt").url}


HOUR = {"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 3600}'}


@bug(
    "N11",
    symptom="once it is deployed, the files of one endpoint never expire, whatever callers ask for",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_toolkit_that_is_imported_late_knows_no_request(fal_runner, fal_cdn):
    """A toolkit that a method imports when it is called knows nothing of the request.

    Production: files of such an endpoint are kept as the account says, and are not the caller's;
        those of an endpoint next to it do what the caller asked for.
    Expected: where an import stands makes no difference.
    Happens: the SDK goes along in the pickle, as a copy. The copy has the current app; the
        toolkit that is imported on the runner is another one, whose current app is nobody.
    Avoid: import the toolkit at the top of the app's module.
    """
    runner = fal_runner(Uploads, isolation="process")
    late = runner.post("/late", json={}, headers=HOUR).json()["url"]
    assert fal_cdn.info(late).expires_at is None
    assert fal_cdn.info(late).request_id is None

    early = runner.post("/early", json={}, headers=HOUR).json()["url"]
    fal_cdn.assert_uploaded(lifecycle={"expiration_duration_seconds": 3600})
    assert fal_cdn.info(early).expires_at is not None


def double(number: int) -> int:
    return 2 * number


class Pool(fal.App):
    def setup(self) -> None:
        fork = multiprocessing.get_context("fork")
        self.pool = ProcessPoolExecutor(1, mp_context=fork)

    @fal.endpoint("/")
    def double(self, input: Input) -> dict:
        return {"result": self.pool.submit(double, 21).result()}

    @fal.endpoint("/upload")
    def upload(self, input: Input) -> dict:
        content = input.text.encode()
        return {"url": self.pool.submit(upload, content).result()}

    def teardown(self) -> None:
        self.pool.shutdown()


def upload(content: bytes) -> str:
    return File.from_bytes(content, file_name="a.txt").url


@bug(
    "N12",
    symptom="once it is deployed, my process pool fails: Can't pickle, it's not the same object",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_pool_takes_no_functions_of_a_pickled_app(fal_runner):
    """A process pool cannot be given a function of the app's own module.

    Production: a pool that works locally fails on the first request of a deployed app.
    Expected: the function is found by its name, as ever.
    Happens: the pool sends a function by its name, and the module of a pickled app is not there
        to look it up in, or is another copy of it.
    Avoid: functions for pools in a module that is installed on the runner (`app_files`, or a
        package), not in the app's own.
    """
    assert fal_runner(Pool, isolation="process", load="import").post("/", json={}).json() == {
        "result": 42
    }
    assert fal_runner(Pool, isolation="process").post("/", json={}).status_code == 500


@bug(
    "P37",
    symptom="files that worker processes upload live as long as the first caller asked for",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_a_worker_process_knows_the_request_it_was_started_in(fal_runner, fal_cdn):
    """A worker process goes on with the request in which it was started, for all others too.

    Production: with a pool in the app, all uploads of its workers carry the request id, the token
        and the lifetime of the call that came first to that runner.
    Expected: those of the request at work, or none.
    Happens: a forked worker has a copy of what its parent knew at that moment. Nobody tells it of
        later requests.
    Avoid: let the workers return bytes, and upload them in the endpoint.
    """
    runner = fal_runner(Pool, isolation="process", load="import")
    first = {"x-fal-request-id": "first", **HOUR}
    runner.post("/upload", json={}, headers=first)
    url = runner.post("/upload", json={}, headers={"x-fal-request-id": "second"}).json()["url"]

    assert fal_cdn.info(url).request_id == "first"
    assert fal_cdn.info(url).lifecycle == {"expiration_duration_seconds": 3600}


@bug(
    "N13",
    symptom="fal deploy fails: could not pickle object as excessively deep recursion required",
    topic=TOPIC,
    seen=("1.75.5", "1.83.0"),
)
def test_an_app_that_refers_to_the_whole_sdk_may_not_be_picklable(fal_runner):
    """A method that says fal.something cannot be pickled once fal.workflows was imported.

    Production: an app cannot be deployed any more since some other file imports fal.workflows; the
        error names neither.
    Expected: what else is imported makes no difference.
    Happens: the SDK goes along by value, and a method that refers to the module fal takes with it
        all that has been imported of it. A workflow's nodes answer whatever they are asked for,
        without an end.
    Avoid: import by name what a method needs of the SDK, not the SDK.
    """
    import fal.workflows

    class Version(fal.App):
        @fal.endpoint("/")
        def version(self) -> dict:
            return {"version": fal.__version__}

    with pytest.raises(EmulatorError, match="excessively deep recursion"):
        fal_runner(Version, isolation="process")

    version = fal.__version__

    class ByName(fal.App):
        @fal.endpoint("/")
        def version(self) -> dict:
            return {"version": version}

    assert fal_runner(ByName, isolation="process").post("/").json() == {"version": version}


pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
