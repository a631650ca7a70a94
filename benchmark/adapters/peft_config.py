"""The settings that PEFT keeps beside an adapter's weights and that decide how strongly they count.

PEFT writes `adapter_config.json` into the adapter's folder; diffusers writes the same settings into the metadata of the
weights. Names, defaults and the matching of patterns are PEFT's (0.21: `LoraConfig`, `LoHaConfig`, `LoKrConfig`,
`utils.other.get_pattern_key`).

    scale = alpha / r, or alpha / sqrt(r) with `use_rslora`
    alpha, r: of the first pattern that matches the module, else the adapter's own

A pattern is a regular expression that must match the end of the module's path, after a dot or from its beginning.
`fan_in_fan_out` needs nothing: it matters to `Conv1D` layers only, which no diffusion model has, and PEFT itself
switches it off for others.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.errors import InputError
from benchmark.reading import NOT_JSON, no_repeats
from benchmark.writing import there

CONFIG = "adapter_config.json"
FOLDER_FILES = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.bin",
)
"""What diffusers and PEFT call the weights in an adapter's folder."""

_PREFIX = "base_model.model."  # PEFT's, before every key it writes
_ALPHA = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}  # the types that are read -> their setting
_DEFAULT = 8  # of alpha and r, in PEFT
_LONGEST = 10_000_000  # bytes; a configuration takes about a thousand
_SECONDS = 1.0  # of the processor's time; thousands of modules and ordinary patterns take hundredths
_MOST_REPEATS = 10_000
_LONGEST_PATTERN = 10_000  # letters
# Settings that change what the factors add, in ways that a sum of weights does not have or that are not known here.
_VARIANTS = (
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "layer_replication",
    "target_parameters",
)
# Initialisations that change the base's weights, so that the adapter does not belong to the base as it is.
_MOVES_BASE = ("pissa", "corda", "olora", "lora_ga", "loftq")


class Patterns:
    """Values by patterns of modules' paths, as `peft.utils.other.get_pattern_key` finds them: the first that matches.

    table: {pattern: value}. where: file and place, for messages. Raises InputError for what is no pattern, and for
    patterns that repeat something more than `_MOST_REPEATS` times, which would be written out in memory.
    """

    def __init__(self, table: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._left = _SECONDS
        self._values = [(pattern, self._compiled(pattern), value) for pattern, value in table.items()]

    def of(self, module: str, otherwise: Any) -> Any:
        """The value of a module, or `otherwise`. Raises InputError if all searches took more than `_SECONDS`.

        A pattern can be written so that a search of it takes years, and this one comes with a file from elsewhere.
        """
        for pattern, compiled, value in self._values:
            if compiled is None:
                if module == pattern or module.endswith(f".{pattern}"):
                    return value
                continue
            began = time.process_time()
            try:
                if compiled.match(module, timeout=max(self._left, 1e-6)):
                    return value
            except TimeoutError:
                raise InputError(f"{self.where} has {pattern[:60]!r}, which takes too long to match.") from None
            finally:
                self._left -= time.process_time() - began
        return otherwise

    def _compiled(self, pattern: str) -> Any:
        """The pattern at the end of a path; None for a plain name, which needs no search."""
        import regex  # unlike re, it can be told when to give up

        if re.fullmatch(r"\w+", pattern):
            return None
        counts = (re.findall(r"\d+", said) for said in re.findall(r"\{[\d,]*\d[\d,]*\}", pattern))
        repeats = math.prod(max(int(number[:6]) for number in numbers) for numbers in counts)
        if repeats > _MOST_REPEATS or len(pattern) > _LONGEST_PATTERN:
            raise InputError(f"{self.where} has {pattern[:60]!r}, which is too large for a pattern of names.")
        try:
            re.compile(pattern)  # PEFT's own reading of it
            return regex.compile(rf"(.*\.)?({pattern})$", flags=regex.VERSION0)
        except (re.error, regex.error, RecursionError, OverflowError):
            raise InputError(f"{self.where} has {pattern[:60]!r}, which is no pattern.") from None


@dataclass(frozen=True)
class PeftSettings:
    """How strongly an adapter's modules count. where: file and place, for messages."""

    where: str
    alpha: float
    rank: int | None = None
    rslora: bool = False
    alphas: Patterns = field(default_factory=lambda: Patterns({}, ""))
    ranks: Patterns = field(default_factory=lambda: Patterns({}, ""))

    def scale(self, module: str, rank: int | None) -> float:
        """The factor of a module's change.

        module: its path with dots, within the network. rank: that of its factors; None if they have none (LoKr of
        whole matrices). Raises InputError if the settings name another rank.
        """
        said = self.ranks.of(module, self.rank)
        if rank is not None and said is not None and rank != said:
            raise InputError(
                f"{self.where}: gives '{module}' rank {said}, but its weights have rank {rank}. They are not of one "
                "adapter."
            )
        rank = said if rank is None else rank
        alpha = self.alphas.of(module, self.alpha)
        if not rank or alpha is None:
            return 1.0
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def adapter_file(path: Path) -> Path:
    """The weights of an adapter: the file itself, or the one in a folder that diffusers or PEFT wrote.

    A folder without one is returned as it is.
    """
    if not there(path) or not path.is_dir():
        return path
    return next((path / name for name in FOLDER_FILES if (path / name).is_file()), path)


def config_beside(file: Path, keys: Iterable[str]) -> Path | None:
    """The `adapter_config.json` that belongs to a file of weights with these keys; None if there is none.

    It belongs to a file that PEFT named or whose keys are all PEFT's: a folder may hold other adapters too.
    """
    config = file.parent / CONFIG
    if not config.is_file():
        return None
    named = file.stem == "adapter_model"
    return config if named or all(key.startswith(_PREFIX) for key in keys) else None


def read_config(config: Path) -> PeftSettings:
    """The settings in an `adapter_config.json`.

    Raises InputError, in one line, for a damaged file, a type of adapter that is not read here, and settings that
    make of the factors something else than a sum.
    """
    try:
        if config.stat().st_size > _LONGEST:
            raise InputError(f"{config}: is too long for the configuration of an adapter.")
        table = json.loads(config.read_text(encoding="utf-8"), object_pairs_hook=no_repeats)
    except NOT_JSON as error:
        raise InputError(f"{config}: cannot be read ({' '.join(str(error).split())[:120]}).") from None
    if not isinstance(table, dict):
        raise InputError(f"{config}: holds no settings of an adapter.")
    kind = table.get("peft_type", "LORA")
    if not isinstance(kind, str) or kind not in _ALPHA:
        raise InputError(
            f"{config}: is of PEFT's type {str(kind)[:40]!r}, which is not read here: LORA, LOHA and LOKR are."
        )
    return _settings(table, _ALPHA[kind], str(config), {"r": _DEFAULT, _ALPHA[kind]: _DEFAULT})


def settings_in(metadata: Mapping[str, str], prefixes: tuple[str, ...], where: str) -> PeftSettings | None:
    """The settings in the metadata that diffusers writes; None if they say nothing of this network.

    prefixes: what stands before the entries of the network in question; "" for entries of no network.
    """
    try:
        table = dict(json.loads(metadata.get("lora_adapter_metadata", "{}")))
    except (ValueError, TypeError, RecursionError):
        table = {}
    said = {key.removeprefix(own): table[key] for own in prefixes for key in table if key.startswith(own)}
    if "lora_alpha" not in said:
        return None
    return _settings(said, "lora_alpha", f"{where}: its metadata", {})


def unsaid(modules: Mapping[str, Mapping[str, str]], metadata: Mapping[str, str]) -> str:
    """A line on an adapter of PEFT's without the settings that say how strongly it counts; empty for others.

    modules: {module: {part: key}} of the denoiser. To be asked where no `adapter_config.json` was found.
    """
    from_peft = bool(modules) and all(module.startswith(_PREFIX) for module in modules)
    if not from_peft or "lora_adapter_metadata" in metadata or any("alpha" in parts for parts in modules.values()):
        return ""
    return (
        f"was written by PEFT, but its {CONFIG}, which says how strongly it counts, is not beside it: it is taken at "
        "alpha = rank"
    )


def _settings(table: Mapping[str, Any], alpha: str, where: str, defaults: Mapping[str, Any]) -> PeftSettings:
    """Raises InputError for values of the wrong type, and for settings that cannot be followed."""
    table = {**defaults, **table}
    for name in _VARIANTS:
        if table.get(name):
            raise InputError(f"{where}: sets '{name}', and such an adapter is no sum of weights that is known here.")
    begun = str(table.get("init_lora_weights", "")).lower()
    if begun.startswith(_MOVES_BASE):
        raise InputError(
            f"{where}: was begun with '{begun[:40]}', which changes the base's weights too. Save the adapter with "
            "PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it."
        )
    ranks = _patterns(table.get("rank_pattern"), "rank", where, _rank)
    alphas = _patterns(table.get("alpha_pattern"), "alpha", where, _number)
    rank = None if table.get("r") is None else _rank(table["r"], where)
    return PeftSettings(where, _number(table[alpha], where), rank, table.get("use_rslora") is True, alphas, ranks)


def _patterns(said: Any, what: str, where: str, read: Callable[[Any, str], Any]) -> Patterns:
    if said is None:
        return Patterns({}, where)
    if not isinstance(said, dict):
        raise InputError(f"{where}: '{what}_pattern' must be a table of patterns.")
    return Patterns({pattern: read(value, where) for pattern, value in said.items()}, f"{where}: '{what}_pattern'")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e30 or value != value:
        raise InputError(f"{where}: an alpha must be a number, and is {str(value)[:40]!r}.")
    return float(value)


def _rank(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise InputError(f"{where}: a rank must be a whole number above 0, and is {str(value)[:40]!r}.")
    return value
