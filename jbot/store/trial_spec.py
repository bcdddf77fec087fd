"""A trial that is to be run: what a study hands to a worker."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from jbot import TRAINER_VERSION
from jbot.config import Config
from jbot.store.record import trial_id


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """One arm at one seed, as a study hands it to a worker."""

    study: str
    arm: str
    plan_hash: str
    config: Config
    data_fingerprint: str
    """That of the jets it uses (:meth:`jbot.data.Jets.fingerprint`), whatever else its study loads."""
    git_commit: str | None = None
    """The driver's: a worker may run a copy of the code without its history."""

    @functools.cached_property
    def trial_id(self) -> str:
        """Hash of Config, data and trainer version."""
        return trial_id(self.config, self.data_fingerprint, TRAINER_VERSION)
