"""Apps for tests of fal's own clients.

Without postponed annotations: AppClient makes the answer's model from the endpoint's annotation,
and processes get the app by pickle.
"""

import time

import fal
from fastapi import HTTPException
from pydantic import BaseModel


class Name(BaseModel):
    name: str = "World"


class Seconds(BaseModel):
    seconds: float


class Said(BaseModel):
    text: str


class Greeting(fal.App):
    @fal.endpoint("/")
    def greet(self, input: Name) -> Said:
        print(f"greeting {input.name}")
        return Said(text=f"Hello, {input.name}")

    @fal.endpoint("/goodbye")
    def part(self, input: Name) -> Said:
        return Said(text=f"Goodbye, {input.name}")

    @fal.endpoint("/fail")
    def fail(self, input: Name) -> Said:
        raise HTTPException(418, "a teapot")

    @fal.endpoint("/think")
    def think(self, input: Seconds) -> Said:
        time.sleep(input.seconds)
        return Said(text="Well")


class Live(fal.App):
    @fal.realtime("/realtime")
    def greet(self, input: Name) -> dict:
        return {"text": f"Hello, {input.name}"}


class Short(fal.App, name="brief"):
    @fal.endpoint("/")
    def say(self) -> Said:
        return Said(text="Hi")
