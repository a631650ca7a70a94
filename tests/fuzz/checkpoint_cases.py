"""Broken checkpoints, adapters, diffusers folders and pickles, each handed to all that reads it."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

from benchmark.adapters.lora import Lora, add_lora
from benchmark.pipelines.loading import load_pipeline
from tests.fuzz.answers import Answer, Cases, command, refusal
from tests.fuzz.broken_adapters import CONFIG, Adapter, broken_settings, sound_adapters
from tests.fuzz.broken_checkpoints import Original, broken_checkpoint
from tests.fuzz.broken_json import broken
from tests.fuzz.sound_files import make_sound_files

Call = Callable[[], Answer]
_OF_FOLDER = ("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors.index.json")
_SETTINGS, _FOLDER, _PICKLE = "adapter_config.json", "diffusers folder", "pickle"


def checkpoint_cases(folder: Path, *, whole: bool = True) -> Cases:
    """Broken checkpoints and what comes beside them.

    whole: whether each case is handed to all that reads such files; otherwise to one of them, the next case to the
    next.
    """
    files = _Files(folder)
    names = (*files.originals, _SETTINGS, _FOLDER, _PICKLE)

    def broken_case(seed: int) -> Iterator[Answer]:
        calls = files.calls(names[seed % len(names)], seed)
        for call in calls if whole else [calls[seed // len(names) % len(calls)]]:
            yield call()

    def sound() -> Iterator[Answer]:
        for name in names:
            yield from (call() for call in files.calls(name, None))

    return Cases(sound, broken_case, lambda seed: names[seed % len(names)])


class _Files:
    """Sound files, and how each kind of them is handed on. seed: None leaves them as they are."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = make_sound_files(folder)
        self.diffusers, self.pickle = self.files.pop("folder"), self.files.pop("pickle")
        self.adapters = sound_adapters(folder, self.files)
        weights = self.files | {name: adapter.file for name, adapter in self.adapters.items()}
        self.originals = {name: Original.read(file) for name, file in weights.items()}
        self.loaded = load_pipeline(self.diffusers)
        (folder / "broken").mkdir()

    def calls(self, name: str, seed: int | None) -> Sequence[Call]:
        """Break the file of this name and return what reads it."""
        if name == _FOLDER:
            return self._folder(seed)
        if name == _PICKLE:
            return self._pickle(seed)
        if name == _SETTINGS or name in self.adapters:
            return self._adapter(self.adapters["peft" if name == _SETTINGS else name], name, seed)
        file, sound = self.folder / "broken.safetensors", self.files[name]
        file.write_bytes(sound.read_bytes() if seed is None else broken_checkpoint(self.originals[name], seed))
        return (
            lambda: command(["inspect", str(file)]),
            lambda: command(["inspect", str(sound), str(file)]),
            lambda: self._blend(sound, file),
            lambda: self._blend(file, sound),
        )

    def _adapter(self, adapter: Adapter, name: str, seed: int | None) -> Sequence[Call]:
        place = self.folder / "broken"
        file, config = place / adapter.file.name, place / CONFIG
        for left in place.iterdir():
            left.unlink()
        data = adapter.file.read_bytes()
        settings = None if adapter.config is None else adapter.config.read_bytes()
        if seed is not None and name == _SETTINGS:
            settings = broken_settings(seed)
        elif seed is not None:
            data = broken_checkpoint(self.originals[name], seed)
        file.write_bytes(data)
        if settings is not None:
            config.write_bytes(settings)
        base = self.files[adapter.base]
        source = file if adapter.config is None else place
        calls: tuple[Call, ...] = (
            lambda: command(["inspect", str(file)]),
            lambda: command(["inspect", str(base), str(source)]),
            lambda: self._blend(base, source, text=name == "kohya"),
            lambda: self._added(source),
        )
        if seed is not None:
            return calls
        return calls[1:-1] if adapter.base == "sd3" else calls[1:]  # alone it is none; the pipeline is SD 1's

    def _folder(self, seed: int | None) -> Sequence[Call]:
        name = _OF_FOLDER[(seed or 0) % len(_OF_FOLDER)]
        sound = {each: (self.diffusers / each).read_text(encoding="utf-8") for each in _OF_FOLDER}
        content = sound[name].encode() if seed is None else broken(sound[name], random.Random(seed))

        def with_broken(call: Call) -> Call:
            def called() -> Answer:
                (self.diffusers / name).write_bytes(content)
                try:
                    return call()
                finally:
                    (self.diffusers / name).write_text(sound[name], encoding="utf-8")

            return called

        calls: tuple[Call, ...] = (
            lambda: command(["inspect", str(self.diffusers)]),
            lambda: self._blend(self.diffusers, self.files["donor"], self.folder / "out"),
            lambda: refusal(lambda: load_pipeline(self.diffusers)),
        )
        return [with_broken(call) for call in calls]

    def _pickle(self, seed: int | None) -> Sequence[Call]:
        content, file, output = bytearray(self.pickle.read_bytes()), self.folder / "broken.ckpt", self._output
        dice = random.Random(seed)
        for _ in range(0 if seed is None else dice.randint(1, 6)):
            content[dice.randrange(len(content))] = dice.randrange(256)
        if seed is not None and dice.random() < 0.3:
            content = content[: dice.randrange(len(content))]
        file.write_bytes(content)
        calls: tuple[Call, ...] = (
            lambda: command(["convert", str(file), "--output", str(output)]),
            lambda: command(["inspect", "--allow-pickle", str(self.files["sd3"]), str(file)]),
        )
        return calls if seed is not None else calls[:1]  # it holds a part of a checkpoint

    @property
    def _output(self) -> Path:
        return self.folder / "out.safetensors"

    def _blend(self, base: Path, donor: Path, output: Path | None = None, *, text: bool = False) -> Answer:
        """A blend of halves. text: whether text encoders are blended, too."""
        table = {
            "components": ["denoiser", "text_encoder"] if text else ["denoiser"],
            "base": {"path": str(base), "name": "a"},
            "donors": [{"path": str(donor), "name": "b"}],
            "weights": {"*": {"b": 0.5}},
        }
        recipe = self.folder / "recipe.json"
        recipe.write_text(json.dumps(table))
        return command(["merge", str(recipe), "--output", str(output or self._output)])

    def _added(self, source: Path) -> Answer:
        """The adapter put on a pipeline that is in memory, as the benchmark does it."""
        parts = {name: copy.deepcopy(getattr(self.loaded, name)) for name in ("unet", "text_encoder")}
        return refusal(lambda: add_lora(SimpleNamespace(**parts), Lora(source)))
