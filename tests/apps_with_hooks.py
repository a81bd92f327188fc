"""An app that receives webhooks, and verifies them as fal's page says.

Without postponed annotations, as in apps.py.
"""

import base64
import hashlib
import time

import fal
import httpx
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from fastapi import Request


class Shop(fal.App):
    def setup(self):
        self.orders = []

    @fal.endpoint("/hook")
    async def hook(self, request: Request) -> dict:
        body = await request.body()
        webhook = await request.json()
        self.orders.append((webhook["request_id"], self.is_fals(request.headers, body)))
        if len(self.orders) == 1:
            time.sleep(webhook["payload"].get("sleep", 0))
        return {}

    @fal.endpoint("/orders")
    def list_orders(self) -> list:
        return self.orders

    def is_fals(self, headers, body):
        names = ("request-id", "user-id", "timestamp")
        values = [headers[f"x-fal-webhook-{name}"] for name in names]
        if abs(time.time() - int(values[2])) > 300:
            return False
        message = "\n".join([*values, hashlib.sha256(body).hexdigest()]).encode()
        for key in httpx.get("https://rest.fal.ai/.well-known/jwks.json").json()["keys"]:
            public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"]))
            try:
                public.verify(bytes.fromhex(headers["x-fal-webhook-signature"]), message)
            except InvalidSignature:
                continue
            return True
        return False
