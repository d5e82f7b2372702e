"""Versions of the formats on disk: each file says its own, an older one is upgraded as it is read, a newer one refused.

What is on disk stays as it is until somebody writes it again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Format:
    """A format on disk.

    Attributes:
        name: word for the user.
        cure: advice to the user about a file of a newer version.
        upgrades: the first makes version 2 of version 1, the next version 3 of version 2, ...
        key: key of a file under which its version stands.
    """

    name: str
    cure: str
    upgrades: tuple[Upgrade, ...] = ()
    key: str = "version"

    @property
    def version(self) -> int:
        """Return the version that this program writes, the newest that it reads."""
        return len(self.upgrades) + 1

    def version_of(self, value: object, path: object, error: type[ValueError] = ValueError) -> int:
        """Find the version of a file; one that says none has version 1.

        Args:
            value: content of the file.
            path: file or folder, for the message.
            error: class of the exception to raise.

        Raises:
            ValueError: the version is newer than this program, or is none (or ``error``, if given).
        """
        if not isinstance(value, Mapping):
            raise error(f"{path} has no {self.name} version, as it holds no JSON object: it is damaged")
        found = value.get(self.key, 1)
        if type(found) is not int or found < 1:
            raise error(f"{path} has {self.name} version {found!r:.80}, and there is no such version: it is damaged")
        if found > self.version:
            raise error(
                f"{path} was made by a newer version of twinfocus ({self.name} version {found}; this program reads up "
                f"to {self.version}): {self.cure}"
            )
        return found

    def upgrade(self, value: Mapping[str, Any], path: object, error: type[ValueError] = ValueError) -> dict[str, Any]:
        """Upgrade a file's value to this program's version, with its key.

        Args:
            value: content of the file.
            path: file or folder, for the message.
            error: class of the exception to raise.

        Raises:
            ValueError: as ``version_of``; an upgrade may raise others on a damaged file.
        """
        found = self.version_of(value, path, error)
        upgraded = dict(value)
        for step in self.upgrades[found - 1 :]:
            upgraded = step(upgraded)
        return {**upgraded, self.key: self.version}

    def upgrade_note(self, value: Mapping[str, Any], path: object, error: type[ValueError] = ValueError) -> str | None:
        """Return a sentence for the user where a file of an older version is about to be written again.

        Raises:
            ValueError: as ``version_of``.
        """
        found = self.version_of(value, path, error)
        return f"{path}: {self.name} upgraded from version {found} to {self.version}" if found < self.version else None
