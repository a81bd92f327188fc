"""Apps for tests of runners.

Without postponed annotations: the names in them do not go along when the SDK pickles an app, and
then every request is answered 422 (see the gallery of bugs).
"""

import os
import threading

import fal
from fal.ref import get_current_app
from fal.toolkit import File
from pydantic import BaseModel


class Name(BaseModel):
    name: str = "x.txt"


class Uploaded(BaseModel):
    url: str


class Uploader(fal.App):
    def setup(self):
        self.states = [os.environ["FAL_RUNNER_STATE"]]

    @fal.endpoint("/")
    def upload(self, input: Name) -> Uploaded:
        return Uploaded(url=File.from_bytes(b"bytes", file_name=input.name).url)

    @fal.endpoint("/async")
    async def upload_async(self, input: Name) -> Uploaded:
        return Uploaded(url=(await File.from_bytes_async(b"bytes", file_name=input.name)).url)

    @fal.endpoint("/thread")
    def upload_in_a_thread_of_its_own(self, input: Name) -> Uploaded:
        urls = []
        thread = threading.Thread(
            target=lambda: urls.append(File.from_bytes(b"bytes", file_name=input.name).url)
        )
        thread.start()
        thread.join()
        return Uploaded(url=urls[0])

    @fal.endpoint("/caller")
    def caller(self, input: Name) -> dict:
        headers = get_current_app().current_request.headers
        return {name: headers[name] for name in ("x-fal-caller-user-id", "x-fal-cdn-token")}

    @fal.endpoint("/who")
    def who(self, input: Name) -> dict:
        app = get_current_app()
        request = app.current_request
        return {
            "is_me": app is self,
            "app": app.__class__.__name__,
            "isinstance": isinstance(app, Uploader),
            "request_id": request.request_id,
            "endpoint": request.endpoint,
            "state": os.environ["FAL_RUNNER_STATE"],
        }


class Other(fal.App):
    @fal.endpoint("/who")
    def who(self, input: Name) -> dict:
        app = get_current_app()
        return {"app": app.__class__.__name__, "request_id": app.current_request.request_id}

    @fal.endpoint("/")
    def upload(self, input: Name) -> Uploaded:
        return Uploaded(url=File.from_bytes(b"other", file_name=input.name).url)


class Clinging(fal.App):
    @fal.endpoint("/")
    def f(self) -> dict:
        return {}

    def teardown(self):
        raise ValueError("cannot let go")
