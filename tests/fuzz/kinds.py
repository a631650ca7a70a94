"""The kinds of input that are broken: checkpoints, configurations, recipes and taggers.

Each makes its sound files in an empty folder, once, and then its cases, which run in this process.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from merger.app.session import open_session
from merger.config.loading import dump_config, load_config
from tests.fuzz.answers import Answer, Cases, command, refusal
from tests.fuzz.broken_configurations import Broken, broken_configuration, sound_configuration
from tests.fuzz.broken_recipes import broken_recipe, sound_recipe
from tests.fuzz.broken_taggers import Breakable, ask, sound_taggers
from tests.fuzz.checkpoint_cases import checkpoint_cases
from tests.fuzz.sound_files import sd1_files
from tests.tiny_taggers import timm_module, write_transformers, write_wd


def configuration_cases(folder: Path) -> Cases:
    """Broken configurations: read, written and read back; what they name is then opened, as a search begins."""
    files = sd1_files(folder)
    for name, source in (("base", "base"), ("a", "one"), ("b", "two")):
        (folder / f"{name}.safetensors").symlink_to(files.files[source])
    (folder / "pipeline").symlink_to(files.folder)
    write_wd(folder / "tagger")
    write_transformers(folder / "judge")
    file = folder / "search.yaml"

    def calls(given: Broken) -> Iterator[Answer]:
        file.write_bytes(given.data)

        def read() -> Any:
            return load_config(file, given.overrides)

        def read_back() -> None:
            config = read()
            written = folder / "written.yaml"
            written.write_text(dump_config(config), encoding="utf-8")
            assert load_config(written) == config, "a configuration is not read back as it was written"

        yield (first := refusal(read_back))
        if first.status == 0:
            yield refusal(lambda: open_session(read()))

    return Cases(
        lambda: calls(sound_configuration()),
        lambda seed: calls(broken_configuration(seed)),
        lambda seed: str(broken_configuration(seed)),
    )


def recipe_cases(folder: Path) -> Cases:
    """Broken recipes: as files of their own, and a fifth of them in the metadata of a blend that is verified."""
    from safetensors.torch import load_file, save_file

    files = sd1_files(folder).files
    table = sound_recipe(files["base"], files["one"])
    recipe, output, blend = folder / "broken.json", folder / "out.safetensors", folder / "blend.safetensors"
    tensors = load_file(files["base"])

    def calls(text: str, verified: bool) -> Iterator[Answer]:
        recipe.write_text(text, encoding="utf-8", errors="surrogatepass")
        yield command(["merge", str(recipe), "--output", str(output)])
        if verified:
            save_file(tensors, blend, metadata={"layermerge.recipe": text})
            yield command(["verify", str(blend)])

    return Cases(
        lambda: calls(json.dumps(table), False),
        lambda seed: calls(broken_recipe(table, seed), seed % 5 == 0),
        lambda seed: broken_recipe(table, seed),
    )


def tagger_cases(folder: Path) -> Cases:
    """Taggers with a broken file: opened and asked."""
    taggers = sound_taggers(folder / "sound")
    copied = folder / "broken"

    def call(tagger: Breakable, content: bytes | None) -> Answer:
        shutil.copytree(tagger.folder, copied)
        if content is not None:
            (copied / tagger.file).write_bytes(content)
        with _as_timm():
            answer = refusal(lambda: ask(copied, tagger.kind))
        shutil.rmtree(copied)
        return answer

    def of(seed: int) -> tuple[Breakable, bytes]:
        tagger = taggers[seed % len(taggers)]
        return tagger, tagger.broken(seed)

    return Cases(
        lambda: (call(tagger, None) for tagger in taggers),
        lambda seed: iter([call(*of(seed))]),
        lambda seed: f"{of(seed)[0].kind} {of(seed)[0].file} {of(seed)[1][:300]!r}",
    )


KINDS: dict[str, Callable[[Path], Cases]] = {
    "checkpoints": checkpoint_cases,
    "configurations": configuration_cases,
    "recipes": recipe_cases,
    "taggers": tagger_cases,
}


@contextmanager
def _as_timm() -> Iterator[None]:
    """timm is played by a module that knows the tiny model alone, unless a test has put it there already."""
    earlier = sys.modules.get("timm")
    sys.modules["timm"] = timm_module()
    try:
        yield
    finally:
        del sys.modules["timm"]
        if earlier is not None:
            sys.modules["timm"] = earlier
