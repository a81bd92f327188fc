"""Who may read what, beside a small model: owners, rules that change, credentials that end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import fal_client
import httpx
from fal.toolkit import File
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, initialize, rule
from machines.machine import NOON, EmulatorMachine

from emulator.settings import Settings

if TYPE_CHECKING:
    from emulator.account import Emulator

API = "https://api.fal.ai/v1"
DAY = timedelta(days=1)
#: Most permissive first.
STATUS = {"allow": 200, "forbid": 403, "hide": 404}
NAMES = ("tester", "ann", "bob")

# Few, so that rules, owners and readers often meet; eve is known to nobody.
users = st.sampled_from(NAMES)
decisions = st.sampled_from(["hide", "hide", "forbid", "allow"])
rules = st.lists(
    st.builds(
        lambda user, decision: {"user": user, "decision": decision},
        st.sampled_from([*NAMES, "acme", "id of bob", "eve"]),
        decisions,
    ),
    max_size=3,
)
acls = st.none() | st.builds(
    lambda default, rules: {"default": default, "rules": rules}, decisions, rules
)


@dataclass(eq=False)
class Known:
    """A file, as the model has it."""

    url: str
    owners: tuple[str, ...]
    acl: dict[str, Any] | None
    request_id: str | None
    deleted: bool = False


@dataclass(eq=False)
class Credential:
    """A token, or a signed URL of one file."""

    value: str
    #: Nicknames and request ids; None: whatever the rules say.
    names: frozenset[str] | None
    until: datetime
    file: Known | None = None


class AccessControl(EmulatorMachine):
    """Upload, change rules, take tokens, sign, delete, let time pass, and read, in any order."""

    files = Bundle("files")
    credentials = Bundle("credentials")

    def __init__(self, emulator: Emulator) -> None:
        super().__init__(emulator)
        self.known: list[Known] = []
        self.client = httpx.Client()
        self.defaults: dict[str, dict[str, Any] | None] = dict.fromkeys(NAMES)
        self.requests = 0
        self.taken: list[Credential] = []

    def teardown(self) -> None:
        self.client.close()
        super().teardown()

    @property
    def now(self) -> datetime:
        return self.emulator.clock.now()

    @initialize(late=st.sampled_from(["anonymous", 403]))
    def open_accounts(self, late: Any) -> None:
        self.settings = Settings(expired_signature=late, users=("bob", "acme"))
        self.emulator.reset(self.settings)
        self.emulator.clock.freeze(NOON)
        self.emulator.user("ann", teams=["acme"])

    # --- files -----------------------------------------------------------------------------------

    @rule(target=files, owner=users, acl=acls, how=st.sampled_from(["toolkit", "client"]))
    def upload(self, owner: str, acl: dict[str, Any] | None, how: str) -> Known:
        acl = self._named(acl)
        with self.emulator.user(owner):
            if how == "toolkit":
                preference = {} if acl is None else {"initial_acl": acl}
                options = {"object_lifecycle_preference": preference}
                url = str(File.from_bytes(b"x", save_kwargs=options).url)
            else:
                given = None if acl is None else _for_the_client(acl)
                lifecycle = fal_client.StorageSettings(initial_acl=given)
                url = fal_client.upload(b"x", "text/plain", "a.txt", lifecycle=lifecycle)
        return self._added(url, (owner,), acl, None)

    @rule(target=files, caller=users, acl=acls)
    def ask_an_app(self, caller: str, acl: dict[str, Any] | None) -> Known:
        """An upload as an app makes it: its key, its caller's token, the request's id."""
        acl, self.requests = self._named(acl), self.requests + 1
        request_id = f"request-{self.requests}"
        headers = {
            "Authorization": f"Key {self.emulator.owner.key}",
            "X-Fal-Request-ID": request_id,
            "X-Fal-CDN-Token": self.emulator.user(caller).token(),
        }
        if acl is not None:
            headers["X-Fal-Object-Lifecycle"] = json.dumps({"initial_acl": acl})
        where = "https://rest.fal.ai/storage/upload/initiate"
        begun = self.client.post(where, json={}, headers=headers).json()
        self.client.put(begun["upload_url"], content=b"x")
        owners = tuple(dict.fromkeys((caller, "tester")))
        return self._added(begun["file_url"], owners, acl, request_id)

    def _added(
        self,
        url: str,
        owners: tuple[str, ...],
        acl: dict[str, Any] | None,
        request_id: str | None,
    ) -> Known:
        default = self.defaults[owners[0]]
        file = Known(url, owners, _applied(default if acl is None else acl), request_id)
        self.known.append(file)
        return file

    @rule(file=files, acl=acls.filter(bool), by=users, host=st.sampled_from(["api", "rest"]))
    def replace_the_rules(self, file: Known, acl: dict[str, Any], by: str, host: str) -> None:
        acl = self._named(acl)
        base = f"{API}/storage" if host == "api" else "https://rest.fal.ai/storage"
        headers = {"Authorization": f"Key {self.emulator.user(by).key}"}
        answer = self.client.put(
            f"{base}/files/acl", params={"url": file.url}, json=acl, headers=headers
        )
        if file.deleted or by not in file.owners:
            assert answer.status_code == (404 if file.deleted else 403)
            return
        file.acl = _applied(acl)
        assert answer.json() == file.acl

    @rule(account=users, acl=acls)
    def change_the_default(self, account: str, acl: dict[str, Any] | None) -> None:
        acl = self._named(acl)
        headers = {"Authorization": f"Key {self.emulator.user(account).key}"}
        body = {"initial_acl": acl}
        answer = self.client.put(f"{API}/storage/settings", json=body, headers=headers)
        self.defaults[account] = _applied(acl)
        assert answer.json()["initial_acl"] == self.defaults[account]

    @rule(file=files, by=users)
    def delete_the_request(self, file: Known, by: str) -> None:
        url = f"{API}/models/requests/{file.request_id}/payloads"
        headers = {"Authorization": f"Key {self.emulator.user(by).key}"}
        answer = self.client.delete(url, headers=headers)
        if file.request_id is None or by not in file.owners:
            assert answer.status_code == 404
            return
        (result,) = answer.json()["cdn_delete_results"]
        assert (result["exception"] is None) == (not file.deleted)
        file.deleted = True

    # --- credentials -----------------------------------------------------------------------------

    @rule(
        target=credentials,
        user=users,
        days=st.sampled_from([1, 7, 30]),
        also=st.lists(st.sampled_from(["bob", "acme", "request-1", "request-2"]), max_size=2),
    )
    def take_a_token(self, user: str, days: int, also: list[str]) -> Credential:
        token = self.emulator.user(user).token(expires_in=days * DAY, also=also)
        return self._taken(token, frozenset([user, *also]), days)

    @rule(target=credentials, file=files, by=credentials, days=st.sampled_from([1, 7]))
    def sign_with_a_token(self, file: Known, by: Credential, days: int) -> Credential:
        headers = {"Authorization": f"Bearer {by.value}"}
        body = {"duration": days * 86400}
        answer = self.client.post(f"{file.url}/sign", json=body, headers=headers)
        if by.file is not None or self.now >= by.until:  # a signature is no token
            assert answer.status_code == 401
        elif file.deleted:
            assert answer.status_code == 404
        elif (expected := self._status(file, [by])) != 200:
            assert answer.status_code == expected
        else:
            value = answer.text.partition("identity=")[2]
            return self._taken(value, by.names, days, file)
        return Credential("forged", frozenset(), NOON, file)

    @rule(target=credentials, file=files, by=users, days=st.sampled_from([1, 7, 8]))
    def sign_with_a_key(self, file: Known, by: str, days: int) -> Credential:
        answer = self.client.post(
            f"{API}/storage/files/sign",
            params={"url": file.url},
            json={"expiration_seconds": days * 86400},
            headers={"Authorization": f"Key {self.emulator.user(by).key}"},
        )
        if file.deleted or by not in file.owners or days > 7:
            stranger = by not in file.owners
            assert answer.status_code == (404 if file.deleted else 403 if stranger else 400)
            return Credential("forged", frozenset(), NOON, file)
        value = answer.json()["signed_url"].partition("identity=")[2]
        return self._taken(value, None, days, file)

    def _taken(
        self, value: str, names: frozenset[str] | None, days: int, file: Known | None = None
    ) -> Credential:
        self.taken.append(Credential(value, names, self.now + days * DAY, file))
        return self.taken[-1]

    @rule(days=st.sampled_from([0.5, 1, 6, 23]))
    def pass_time(self, days: float) -> None:
        self.emulator.clock.advance(days * DAY)

    # --- reading ---------------------------------------------------------------------------------

    @rule(file=files, shown=st.lists(credentials, max_size=3))
    def read(self, file: Known, shown: list[Credential]) -> None:
        """With one token at most, as there is one header, and any number of signatures."""
        tokens = [one for one in shown if one.file is None][:1]
        signatures = [one for one in shown if one.file is not None]
        headers = {"Authorization": f"Bearer {tokens[0].value}"} if tokens else {}
        params = [("identity", one.value) for one in signatures]
        answer = self.client.get(file.url, headers=headers, params=params)
        assert answer.status_code == self._status(file, [*tokens, *signatures])

    @rule()
    def read_with_each(self) -> None:
        """The newest files, with each of the newest credentials alone."""
        for file in self.known[-4:]:
            for one in self.taken[-6:]:
                self.read(file, [one])

    @rule(one=credentials, offset=st.sampled_from([timedelta(microseconds=-1), timedelta(0)]))
    def read_at_the_end_of(self, one: Credential, offset: timedelta) -> None:
        """As long as it counts, and no longer."""
        if one.until + offset > self.now:
            self.emulator.clock.move_to(one.until + offset)
        for file in self.known[-4:] if one.file is None else [one.file]:
            self.read(file, [one])

    def _status(self, file: Known, shown: list[Credential]) -> int:
        """What the model says of a read."""
        if file.deleted:
            return 404
        given = [one for one in shown if one.value != "forged" and one.file in (None, file)]
        valid = [one for one in given if self.now < one.until]
        if not valid and any(one.file for one in given) and self.settings.expired_signature == 403:
            return 403
        if any(one.names is None for one in valid):
            return 200
        names = {name for one in valid for name in one.names or ()}
        if names & {*file.owners, file.request_id}:
            return 200
        if "ann" in names:
            names.add("acme")  # she is a member
        acl = file.acl or {"default": "allow", "rules": []}
        ids = {self.emulator.user("bob").id: "bob"}
        matching = [r["decision"] for r in acl["rules"] if ids.get(r["user"], r["user"]) in names]
        return min((STATUS[one] for one in matching), default=STATUS[acl["default"]])

    def check(self) -> None:
        there = [file.url for file in self.emulator.cdn.files]
        assert there == [file.url for file in self.known if not file.deleted]
        for file in self.known:
            told = self.emulator.cdn.info(file.url)
            assert (told.owners, told.owner) == (file.owners, file.owners[0])
            if not file.deleted:
                assert (told.acl.to_json() if told.acl else None) == file.acl

    def _named(self, acl: dict[str, Any] | None) -> dict[str, Any] | None:
        """The rules, with bob's id in place of its name in the strategy."""
        if acl is None:
            return None
        ids = {"id of bob": self.emulator.user("bob").id}
        return {
            **acl,
            "rules": [{**r, "user": ids.get(r["user"], r["user"])} for r in acl["rules"]],
        }


def _applied(acl: dict[str, Any] | None) -> dict[str, Any] | None:
    """Rules for whom the platform does not know are dropped."""
    if acl is None:
        return None
    return {**acl, "rules": [rule for rule in acl["rules"] if rule["user"] != "eve"]}


def _for_the_client(acl: dict[str, Any]) -> fal_client.StorageACL:
    written = [fal_client.StorageACLRule(**rule) for rule in acl["rules"]]
    return fal_client.StorageACL(acl["default"], written)
