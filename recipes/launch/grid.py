"""Variants × seeds: which runs belong together, which run needs which, and by which key a run is known."""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from recipes.errors import nearest
from recipes.launch.configs import config_file


class Job(NamedTuple):
    """One run of a grid.

    Attributes:
        variant: name of the variant.
        seed: seed of the run.
    """

    variant: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Runs of ``recipes fit`` that are compared, each with several seeds.

    Attributes:
        variants: arguments of ``recipes fit`` by the name of the variant. ``<root>`` stands for the folder of the data,
            and ``<run of NAME>`` for the run of another variant with the same seed, which runs first and is kept.
        about: subject of the comparison and its conditions; stored with the results.
        common: arguments of all variants, after their own.
        kept: variants whose runs are kept for other uses, beside those that other variants need.

    Raises:
        ValueError: if a run is named that is no variant, or a run needs itself.
    """

    variants: Mapping[str, str]
    about: str = ""
    common: str = ""
    kept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks that every run that is named is a variant, and that no run needs itself."""
        for variant in (*self.variants, *self.kept):
            self._check(variant, ())

    def _check(self, variant: str, needed_by: tuple[str, ...]) -> None:
        if variant not in self.variants:
            raise ValueError(f"there is no variant {variant!r}{nearest(variant, self.variants)}")
        if variant in needed_by:
            raise ValueError(f"variant {variant!r} needs its own run: {' needs '.join((*needed_by, variant))}")
        for name in self.needs(variant):
            self._check(name, (*needed_by, variant))

    def arguments(self, variant: str) -> str:
        """Returns the arguments of ``recipes fit``, as they are typed."""
        return f"{self.variants[variant]} {self.common}".strip()

    def command(self, variant: str) -> str:
        """Returns the command of a variant. Results are stored under it."""
        return f"recipes fit {self.arguments(variant)} --seed_everything <seed>"

    def configuration(self, variant: str) -> str:
        """Computes a digest of the content of all configs that a variant names; comments do not count.

        Raises:
            FileNotFoundError: if there is no such config.
        """
        words = shlex.split(self.arguments(variant))
        names = [value for option, value in zip(words, words[1:]) if option == "--config"]
        files = [Path(name) if Path(name).is_file() else config_file(name) for name in names]
        content = json.dumps([yaml.safe_load(file.read_text()) for file in files], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def needs(self, variant: str) -> list[str]:
        """Returns the other variants whose runs a variant starts from."""
        return re.findall("<run of (.+?)>", self.variants[variant])

    def needed(self, variant: str) -> dict[str, str]:
        """Computes the digests of the configs of all variants that a variant starts from, directly or not, by name."""
        found: dict[str, str] = {}
        for name in self.needs(variant):
            found |= {name: self.configuration(name)} | self.needed(name)
        return found

    def kept_variants(self) -> list[str]:
        """Returns the variants whose runs are kept: those that others need, and those of ``kept``."""
        needed = [name for variant in self.variants for name in self.needs(variant)]
        return list(dict.fromkeys([*needed, *self.kept]))

    def jobs(self, seeds: Sequence[int], only: Sequence[str] | None = None) -> list[Job]:
        """Lists the runs. Variants take turns within a seed, so that a busy machine slows all of them alike.

        Args:
            seeds: of the runs.
            only: variants to run; if None, all variants.

        Raises:
            ValueError: if one of ``only`` is no variant.
        """
        for variant in only or ():
            self._check(variant, ())
        return [Job(variant, seed) for seed in seeds for variant in (only or self.variants)]
