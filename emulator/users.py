"""Users of the platform: who they are, what they may read, and acting as one of them.

A user is an account as well: it has a key, settings and files of its own [platform facts §1.10].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from emulator.credentials import FAL_KEY
from emulator.errors import EmulatorError
from emulator.fleets.gateway_headers import caller_id
from emulator.sdk import another_key
from emulator.storage.lifecycle import Acl, parse_acl

if TYPE_CHECKING:
    import httpx

    from emulator.identity import Identities
    from emulator.settings import Settings

__all__ = ["PERMISSIONS", "Account", "User", "Users", "dropped_rule", "nickname_of", "without"]

#: What a key of the platform API may be allowed [§1.10, §1.15]; a user's plain key may do all.
PERMISSIONS = frozenset(
    {"admin", "assets:read", "assets:write", "account:settings:read", "account:settings:write"}
)


def nickname_of(user: User | str) -> str:
    """The nickname of a user, who may be given by it."""
    return user if isinstance(user, str) else user.nickname


class User:
    """A user of the platform, from ``fal_emulator.user("bob")``.

    ``with bob:`` everything that the test does is done with bob's key, and runners are called by
    that user.
    """

    def __init__(self, nickname: str, users: Users) -> None:
        #: As access rules and app ids name the user.
        self.nickname = nickname
        #: As access rules may name the user too.
        self.id = f"user_{hashlib.sha256(nickname.encode()).hexdigest()[:16]}"
        #: Nicknames of the teams that the user is in: what they may read, the user may.
        self.teams: list[str] = []
        self._users = users
        self._expiration: timedelta | None = None
        self._acl: dict[str, Any] | None = None
        self._acting: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<User {self.nickname}>"

    @property
    def key(self) -> str:
        """``"key-id:secret"``: a FAL_KEY of this user's account, that may do everything."""
        if self.is_owner:
            return FAL_KEY
        return f"emulated-key-of-{self.id}:emulated-key-secret"  # ASCII, as a header has to be

    def key_with(self, *permissions: str) -> str:
        """Another key of this account, that may do only this: ``key_with("assets:read")``.

        Raises:
            EmulatorError: the platform has no such permission.
        """
        unknown = sorted(set(permissions) - PERMISSIONS)
        if unknown:
            raise EmulatorError(
                f"there is no permission {unknown[0]!r}; there are {', '.join(sorted(PERMISSIONS))}"
            )
        return self._users.new_key(self, frozenset(permissions))

    def token(
        self, expires_in: timedelta | float | None = None, also: Iterable[User | str] = ()
    ) -> str:
        """A new CDN token, with which this user reads.

        Args:
            expires_in: seconds or a timedelta; default: ``Settings.token_lifetime``.
            also: further identities that it carries: users, teams, or the ids of requests whose
                outputs it may read, as a token has them that came back from a nested call.
        """
        lifetime = self._users.settings.token_lifetime if expires_in is None else expires_in
        if not isinstance(lifetime, timedelta):
            lifetime = timedelta(seconds=lifetime)
        further = [nickname_of(one) for one in also]
        return self._users.identities.issue(self.nickname, lifetime, further).token

    @property
    def headers(self) -> dict[str, str]:
        """The headers to read files with; with a new token each time."""
        return {"Authorization": f"Bearer {self.token()}"}

    @property
    def as_caller(self) -> dict[str, str]:
        """The headers by which an app knows that this user calls it."""
        known_as = caller_id(self.nickname, self._users.settings.nickname)
        return {"x-fal-caller-user-id": known_as, "x-fal-cdn-token": self.token()}

    def get(self, url: str, **options: Any) -> httpx.Response:
        """Read a file as this user; *options* are those of ``httpx.get``."""
        import httpx

        headers = {**self.headers, **options.pop("headers", {})}
        return httpx.get(url, headers=headers, **options)

    @property
    def is_owner(self) -> bool:
        """Whether this is the account that the test has, and its apps run in."""
        return self.nickname == self._users.settings.nickname

    @property
    def names(self) -> frozenset[str]:
        """All by which access rules may name the user: nickname, id, those of the teams."""
        teams = [self._users.user(team) for team in self.teams]
        return frozenset(name for one in (self, *teams) for name in (one.nickname, one.id))

    # --- settings of the account -----------------------------------------------------------------

    @property
    def account_expiration(self) -> timedelta | None:
        """How long files live whose upload names no lifetime; None: until deleted."""
        return self._users.settings.account_expiration if self.is_owner else self._expiration

    @account_expiration.setter
    def account_expiration(self, value: timedelta | None) -> None:
        if self.is_owner:
            self._users.settings.account_expiration = value
        else:
            self._expiration = value

    @property
    def account_acl(self) -> dict[str, Any] | None:
        """``initial_acl`` of files whose upload names none; None is public."""
        return self._users.settings.account_acl if self.is_owner else self._acl

    @account_acl.setter
    def account_acl(self, value: dict[str, Any] | None) -> None:
        acl, problems = parse_acl(value)
        if problems:
            raise EmulatorError(
                f"account_acl cannot be this: {'; '.join(problems)}. "
                'Write for example account_acl = {"default": "hide"}.'
            )
        self._users.learn(acl)
        if self.is_owner:
            self._users.settings.account_acl = value
        else:
            self._acl = value

    # --- acting ----------------------------------------------------------------------------------

    def __enter__(self) -> User:
        if not self._users.has(self):
            raise EmulatorError(
                f"{self.nickname} is a user of another test, and this one's emulator does not know "
                f'it. Write with fal_emulator.user("{self.nickname}"): in the test itself.'
            )
        self._acting.append(another_key(self.key))
        self._users.begin_acting(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._acting:  # not if its test is over: what was put aside is back already
            self._users.end_acting(self)
            self._acting.pop()()

    def forget(self) -> None:
        """The test is over: the environment and the SDK's state have been put back."""
        self._acting.clear()


@dataclass(frozen=True)
class Account:
    """Whose account a request acts for, and what its key allows there."""

    user: User
    #: None: everything.
    permissions: frozenset[str] | None = None

    def may(self, permission: str | None) -> bool:
        """Whether it may do what needs this permission; None: what any key may."""
        return permission is None or self.permissions is None or permission in self.permissions


class Users:
    """All users that the platform knows.

    Args:
        identities: their tokens.
        settings: of the account that the test has.
    """

    def __init__(self, identities: Identities, settings: Callable[[], Settings]) -> None:
        self.identities = identities
        self._settings = settings
        self._users: dict[str, User] = {}
        self._keys: dict[str, Account] = {}
        self._stack: list[User] = []

    @property
    def settings(self) -> Settings:
        """Of the account that the test has."""
        return self._settings()

    def reset(self) -> None:
        """Forget all but the account and the users that the settings name."""
        self.stop_acting()
        self._users.clear()
        self._keys.clear()
        for nickname in (self.settings.nickname, *self.settings.users):
            self.user(nickname)
        self.learn(parse_acl(self.settings.account_acl)[0])

    def user(self, name: str, teams: Iterable[User | str] = ()) -> User:
        """The user of this nickname (or id); from now on the platform knows it.

        Raises:
            EmulatorError: that is no nickname.
        """
        found = self._find(name)
        if found is None:
            if not name or not name.isprintable() or " " in name or ":" in name:
                raise EmulatorError(
                    f'{name!r} is no nickname. Write for example fal_emulator.user("bob").'
                )
            found = self._add(name)
        for team in map(nickname_of, teams):
            self.user(team)
            if team not in found.teams:
                found.teams.append(team)
        return found

    @property
    def owner(self) -> User:
        """The account that the test has, and its apps run in."""
        return self.user(self.settings.nickname)

    @property
    def present(self) -> User:
        """As whom the test acts: the innermost ``with user:``, else the account itself."""
        return self._stack[-1] if self._stack else self.owner

    def stop_acting(self) -> None:
        """The test is over, and with it all acting: what was put aside is back already."""
        for user in self._users.values():
            user.forget()
        self._stack.clear()

    def begin_acting(self, user: User) -> None:
        """Let the test act as a user."""
        self._stack.append(user)

    def end_acting(self, user: User) -> None:
        """Let it act as whom it did before."""
        innermost = self._stack[::-1].index(user)
        del self._stack[len(self._stack) - 1 - innermost]

    def names_of(self, nickname: str) -> frozenset[str]:
        """All names of a user whom the test names; what is no user's is itself alone."""
        found = self._find(nickname)
        return frozenset((nickname,)) if found is None else found.names

    def has(self, user: User) -> bool:
        """Whether it is a user of this very test."""
        return self._users.get(user.nickname) is user

    def _add(self, name: str) -> User:
        user = self._users.setdefault(name, User(name, self))
        self._keys[user.key] = Account(user)
        return user

    def _find(self, name: str) -> User | None:
        found = self._users.get(name)
        return found or next((one for one in list(self._users.values()) if one.id == name), None)

    # --- keys ------------------------------------------------------------------------------------

    def new_key(self, user: User, permissions: frozenset[str]) -> str:
        """A key with these permissions only."""
        key = f"emulated-key-{len(self._keys)}-of-{user.id}:emulated-key-secret"
        self._keys[key] = Account(user, permissions)
        return key

    def account(self, authorization: str | None, runner: str | None = None) -> Account | None:
        """Whose key or login a header carries: a user's, or else the account's; None: nobody's.

        Args:
            authorization: ``Key id:secret``, or ``Bearer`` with a login.
            runner: what sent it. A runner in a thread shares the environment of the test, and so
                the key of the user whom the test acts as; the platform gives it the account's.
        """
        if not self.identities.is_account(authorization) or self.identities.is_token(authorization):
            return None
        scheme, _, value = (authorization or "").partition(" ")
        known = self._keys.get(value.strip()) if scheme.lower() == "key" else None
        if known is None:
            return Account(self.owner)
        is_shared = known.user in self._stack and value.strip() == known.user.key
        return Account(self.owner) if runner is not None and is_shared else known

    # --- access rules ----------------------------------------------------------------------------

    def learn(self, acl: Acl | None) -> None:
        """Know the users whom the rules name that a test wrote itself."""
        for rule in acl.rules if acl is not None else ():
            self.user(rule.user)

    def unknown_in(self, acl: Acl | None) -> list[str]:
        """Whom these rules name that the platform does not know: it drops such rules silently."""
        named = dict.fromkeys(rule.user for rule in acl.rules) if acl is not None else {}
        return [name for name in named if self._find(name) is None]


def without(acl: Acl | None, unknown: Iterable[str]) -> Acl | None:
    """The rules, but for those that name such users."""
    dropped = frozenset(unknown)
    if acl is None or not dropped:
        return acl
    return Acl(acl.default, tuple(rule for rule in acl.rules if rule.user not in dropped))


def dropped_rule(user: str) -> str:
    """What to tell the test about a rule that names an unknown user."""
    return (
        f"the rule for {user!r} was dropped: the platform knows no such user. Write "
        f'fal_emulator.user("{user}") before this, or @pytest.mark.fal(users=["{user}"])'
    )
