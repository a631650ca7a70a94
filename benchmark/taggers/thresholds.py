"""Where a tag counts as found, for taggers whose makers or users have settled on a threshold."""

from __future__ import annotations

from benchmark.taggers.tagger import Tagger

_WD_V3 = (0.35, "WD v3: the default for general tags of its demo page, SmilingWolf/wd-tagger")
# (class of the tagger, tags it has) -> (threshold, what it is and who says so). Taggers that others trained in the same
# format have other tags, and are not taken for these.
_KNOWN = {
    ("WDTagger", 10861): _WD_V3,
    ("TimmTagger", 10861): _WD_V3,
    ("WDTagger", 9083): (0.35, "WD v2: the default for general tags of its demo page, SmilingWolf/wd-tagger"),
    ("MLDanbooruTagger", 12547): (0.7, "ML-Danbooru: the default of get_mldanbooru_tags in dghs-imgutils"),
}


def recommended(tagger: Tagger) -> tuple[float, str] | None:
    """(threshold, what the tagger is and who says so); None for a tagger that is not known."""
    return _KNOWN.get((type(tagger).__name__, len(tagger.tags)))
