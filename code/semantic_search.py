"""Search music by meaning, and measure how well it works.

    search   the pieces of a folder that are most similar to a sentence, a text, or a piece of music
    metrics  how high each query of a folder ranks its own partner in another folder (MRR, Hit@k, median rank)
    score    how similar two folders are as a whole: generated music and real music, say
    pack     many small feature files -> one matrix, which is searched from the disk

examples:
  python semantic_search.py search "a fast Irish dance" music/ --html hits.html
  python semantic_search.py search humming.mid music/ --top_k 5
  python semantic_search.py search "book.abc#12" features/music          # the twelfth tune of a book
  python semantic_search.py metrics features/text features/music --ranks ranks.jsonl
  python semantic_search.py score music/real music/generated --frechet
  python semantic_search.py pack features/music packed/music
  python semantic_search.py search "a slow waltz" packed/music
  python semantic_search.py search "a slow waltz" music/ --download      # downloads the published weights

Folders hold music and texts (.abc .mtf .mid .midi .kar .rmi .xml .musicxml .mxl .txt, in any mix, converted as
process_data/ does), or features of `extract_clamp2.py --normalize` (.npy), or packed ones. Music is embedded with the
weights of config.py, and its features are cached in FEATURE_CACHE. Similarity is the cosine. Files that cannot be used,
or that were repaired or lost something, are counted and named.
Exit status: 0; 1 if a file was left out; 2 if nothing could be done.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

import cache
import config
import features
import files
import pieces
import provenance
import published
import retrieval
from command_line import at_least
from features import INPUT_SUFFIXES, Features
from files import InputError


def read_query(query: str) -> tuple[Features, Path | None]:
    """Read and embed a sentence or a file. Raises InputError.

    Returns:
        its one feature, whose name is the heading of the results; the file to be shown, `#N` of a tune included.
    """
    path, number = pieces.locate(query)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        array = features.read(path)
        if array.ndim != 2:
            raise InputError(f"{path}: temporal features {list(array.shape)}; extract the query with --normalize")
        return Features([path.name], array, made_with=provenance.of_files(path, [path])), None
    known = f"a query is a sentence, or a file of type .npy {' '.join(INPUT_SUFFIXES)}"
    if os.path.isdir(query):
        raise InputError(f"{query}: a folder; {known}")
    is_file = os.path.isfile(path)
    if is_file and suffix not in INPUT_SUFFIXES:
        raise InputError(f"{path}: of unknown type; {known}")
    if not is_file and pieces.looks_like_file(query):
        raise InputError(f"{path}: no such file; {known}")
    if not query.strip():
        raise InputError(f"the query is empty; {known}")
    [(_, entry)] = cache.features_of([path if is_file else query])
    row = pieces.row(path, number, len(entry.errors))
    if entry.errors[row]:
        raise InputError(f"{query}: {entry.errors[row]}")
    if entry.warnings[row]:
        print(files.printable(f"{query}: {entry.warnings[row]}"), file=sys.stderr)
    matrix = entry.vectors[row : row + 1]
    if not is_file:
        return Features([f"“{query}”"], matrix, made_with={"the query": cache.made_with()}), None
    return Features([entry.titles[row] or Path(query).name], matrix, made_with={query: cache.made_with()}), Path(query)


def read_folder(folder: Path) -> Features:
    """Read the features of a folder or of one file: .npy files, packed ones, or music and texts, which are embedded.

    Raises InputError, OSError.
    """
    if features.is_packed(folder):
        return features.load(folder)
    found, others = files.list_files(folder, INPUT_SUFFIXES)
    arrays = [path for path in others if path.suffix.lower() == ".npy"]
    if found and arrays:
        raise InputError(
            f"{folder}: holds music or texts ({found[0]}) and features ({arrays[0]}); which are meant? Separate them"
        )
    if arrays:
        return features.load(folder)
    if not found:
        raise InputError(f"{folder}: there is no music, text or .npy file in it ({len(others)} files of other types)")
    if others:
        print(files.printable(f"{folder}: {len(others)} files of other types were left alone"), file=sys.stderr)
    return embed_folder(folder, found)


def embed_folder(folder: Path, found: list[Path]) -> Features:
    """Embed files of music and texts; `pieces.names` names the tunes of a file that has several."""
    entries = dict(cache.features_of([source_of(folder, path.as_posix()) for path in found]))
    result = Features([], np.empty(0, np.float32), made_with={str(folder): cache.made_with()})
    rows = []
    for path in found:
        entry = entries[source_of(folder, path.as_posix())]
        for row, name in enumerate(pieces.names(path.as_posix(), len(entry.errors))):
            if entry.errors[row]:
                result.skipped.append(f"{source_of(folder, name)}: {entry.errors[row]}")
                continue
            if entry.warnings[row]:
                result.warnings.append(f"{source_of(folder, name)}: {entry.warnings[row]}")
            result.names.append(name)
            result.titles.append(entry.titles[row])
            rows.append(entry.vectors[row])
    if not rows:
        raise InputError(f"{folder}: none of its {len(found)} files can be used; the first: {result.skipped[0]}")
    result.matrix = np.stack(rows)
    return result


def source_of(folder: Path, name: str) -> Path:
    """Returns the file of a piece, `#N` included."""
    return (folder.parent if folder.is_file() else folder) / name


def require_alike(first: Path | str, a: Features, second: Path | str, b: Features) -> None:
    """Raise InputError if features are known to be of different models or made in different ways."""
    if a.matrix.shape[1] != b.matrix.shape[1]:
        widths = f"{first} has width {a.matrix.shape[1]}, {second} {b.matrix.shape[1]}"
        raise InputError(f"{widths}: features of one model can be compared")
    provenance.agreed(a.made_with | b.made_with)


def read_folders(first_dir: Path, second_dir: Path) -> tuple[Features, Features]:
    """Read the features of two folders that can be compared."""
    first, second = read_folder(first_dir), read_folder(second_dir)
    require_alike(first_dir, first, second_dir, second)
    return first, second


def pair_up(first_dir: Path, first: Features, second_dir: Path, second: Features) -> list[tuple[int, int]]:
    """Returns the row numbers of the files with the same path but for the extension.

    Raises InputError if two files of a folder differ in the extension only, or if there is no pair.
    """
    rows: list[dict[str, int]] = []
    for folder, of in ((first_dir, first), (second_dir, second)):
        by_name: dict[str, int] = {}
        for row, name in enumerate(of.names):
            if (other := by_name.setdefault(features.without_suffix(name), row)) != row:
                both = f"{of.names[other]} and {name}"
                raise InputError(f"{folder}: {both} are one piece; which is the partner? Keep one")
        rows.append(by_name)
    pairs = [(row, rows[1][name]) for name, row in rows[0].items() if name in rows[1]]
    if not pairs:
        raise InputError(
            f"no file of {first_dir} has the path of one of {second_dir}: {first.names[0]} and {second.names[0]}, say"
        )
    return pairs


def search(args: argparse.Namespace) -> int:
    (query, source), references = read_query(args.query), read_folder(args.ref)
    require_alike(args.query, query, args.ref, references)
    scores, rows = retrieval.top_k(query.matrix, references.matrix, args.top_k)
    hits = []
    for rank, (score, row) in enumerate(zip(scores[0], rows[0], strict=True), start=1):
        hits.append({"rank": rank, "score": round(float(score), 6), "name": references.names[row]})
        if references.titles:
            hits[-1]["title"] = references.titles[row]
    print_hits(hits)
    if args.top_k > len(hits):
        fewer = f"{args.ref} holds {len(hits)} pieces, fewer than the {args.top_k} asked for"
        print(files.printable(fewer), file=sys.stderr)
    if args.html:
        import page

        sources = [source_of(args.ref, hit["name"]) if references.titles else None for hit in hits]
        searched = f"{len(references.names):,} pieces in {args.ref}"
        page.write(args.html, query.names[0], source, hits, sources, searched)
    return finish(args, {"query": args.query, "hits": hits}, {str(args.ref): references})


def print_hits(hits: list[dict]) -> None:
    names = [files.printable(hit["name"]) for hit in hits]
    width = max(map(len, names))
    print("rank   score  name")
    for hit, name in zip(hits, names, strict=True):
        title = files.printable(hit.get("title", ""))
        print(f"{hit['rank']:4d}  {hit['score']:6.4f}  {name:{width}}  {title}".rstrip())


def metrics(args: argparse.Namespace) -> int:
    queries, references = read_folders(args.query_dir, args.ref_dir)
    pairs = pair_up(args.query_dir, queries, args.ref_dir, references)
    rows, partners = np.array(pairs).T  # [Q] each
    rank, score = retrieval.ranks(queries.matrix[rows], references.matrix, partners)
    measured, by_chance = retrieval.measures(rank), retrieval.chance(len(references.names))
    print(f"{len(rank)} queries, each with one partner among {len(references.names)} pieces")
    print(f"{'':12}{'measured':>10}{'by chance':>11}")
    for name, value in measured.items():
        digits = 1 if name == "median rank" else 4
        print(f"{name:12}{value:10.{digits}f}{by_chance[name]:11.{digits}f}")
    if args.ranks:
        with files.atomic_write(args.ranks, "w", encoding="utf-8", errors="backslashreplace") as file:
            for (row, partner), r, cosine in zip(pairs, rank, score, strict=True):
                names = {"query": queries.names[row], "reference": references.names[partner]}
                line = names | {"rank": int(r), "score": round(float(cosine), 6)}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    result = {"queries": len(rank), "references": len(references.names), "measured": measured, "by_chance": by_chance}
    return finish(args, result, {str(args.query_dir): queries, str(args.ref_dir): references}, pairs)


def score(args: argparse.Namespace) -> int:
    references, tests = read_folders(args.ref_dir, args.test_dir)
    pairs = None
    result: dict = {}
    if args.pairwise:
        pairs = pair_up(args.ref_dir, references, args.test_dir, tests)
        rows, partners = np.array(pairs).T  # [N] each
        values = retrieval.cosines(references.matrix[rows], tests.matrix[partners])
        result = {"pairs": [], "mean": float(values.mean()), "standard_deviation": float(values.std())}
        for (row, partner), value in zip(pairs, values, strict=True):
            names = {"reference": references.names[row], "test": tests.names[partner]}
            result["pairs"].append(names | {"score": round(float(value), 6)})
            print(files.printable(f"{value:7.4f}  {references.names[row]}"))
        print(f"cosine of {len(pairs)} pairs: mean {values.mean():.4f}, standard deviation {values.std():.4f}")
    else:
        result["cosine_of_means"] = retrieval.cosine_of_means(references.matrix, tests.matrix)
        sizes = f"{len(references.names)} and {len(tests.names)} pieces"
        print(f"cosine of the mean features of {sizes}: {result['cosine_of_means']:.4f}")
    if args.frechet:
        result["frechet_distance"] = retrieval.frechet_distance(references.matrix, tests.matrix)
        print(f"Fréchet distance: {result['frechet_distance']:.4f}")
    return finish(args, result, {str(args.ref_dir): references, str(args.test_dir): tests}, pairs)


def pack(args: argparse.Namespace) -> int:
    packed = features.pack(args.features, args.out)
    print(files.printable(f"{len(packed.names)} features of width {packed.matrix.shape[1]} -> {args.out}"))
    return finish(args, {}, {str(args.features): packed})


def finish(
    args: argparse.Namespace, result: dict, folders: dict[str, Features], pairs: list[tuple[int, int]] | None = None
) -> int:
    """Report files that were left out or read with warnings, write `--json`, and return the exit status."""
    for number, (folder, of) in enumerate(folders.items()):
        if pairs is not None:
            used = {pair[number] for pair in pairs}
            unpaired = [name for row, name in enumerate(of.names) if row not in used]
            result.setdefault("without_partner", {})[folder] = unpaired
            features.report(f"of {folder} have no partner", unpaired)
        result.setdefault("skipped", {})[folder] = of.skipped
        features.report(f"of {folder} skipped", of.skipped)
        result.setdefault("warnings", {})[folder] = of.warnings
        shown = [line if len(line) <= 300 else f"{line[:299]}…" for line in of.warnings]
        features.report(f"of {folder} read with warnings", shown, 3)
    if args.json:
        features.write_json(args.json, result)
    return 1 if any(of.skipped for of in folders.values()) else 0


def get_args_parser() -> argparse.ArgumentParser:
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="{search,metrics,score,pack}")

    def command(function, about: str, embeds: bool = True) -> argparse.ArgumentParser:
        def run(args: argparse.Namespace) -> int:
            if embeds and args.download:
                published.provide(config.resolve(config.CLAMP2_WEIGHTS_PATH), download=True)
            return function(args)

        sub = commands.add_parser(function.__name__, help=about, description=about)
        sub.set_defaults(run=run)
        sub.add_argument("--json", type=Path, metavar="FILE", help="write the result there, with every name left out")
        if embeds:
            about = "download the published weights to CLAMP2_WEIGHTS_PATH if none are there"
            sub.add_argument("--download", action="store_true", help=about)
        return sub

    sub = command(search, "the pieces of REF that are most similar to QUERY")
    sub.add_argument("query", metavar="QUERY", help="a sentence in quotes, or a file of music, text or features")
    sub.add_argument("ref", metavar="REF", type=Path, help="a folder of music and texts or of features, or one file")
    sub.add_argument("--top_k", type=at_least(1), default=10, metavar="N", help="how many to show (default: 10)")
    sub.add_argument("--html", type=Path, metavar="FILE", help="write a page with the hits and their first bars there")

    sub = command(metrics, "how high each query ranks its partner: the file of REF_DIR of the same path")
    sub.add_argument("query_dir", metavar="QUERY_DIR", type=Path)
    sub.add_argument("ref_dir", metavar="REF_DIR", type=Path, help="every file in it is a candidate, paired or not")
    sub.add_argument("--ranks", type=Path, metavar="FILE", help="write one JSON line a query there")

    sub = command(score, "the cosine of the mean features of two folders")
    sub.add_argument("ref_dir", metavar="REF_DIR", type=Path)
    sub.add_argument("test_dir", metavar="TEST_DIR", type=Path)
    sub.add_argument("--pairwise", action="store_true", help="instead, of each pair of files of the same path")
    sub.add_argument("--frechet", action="store_true", help="also the Fréchet distance of the two folders")

    sub = command(pack, "one matrix and a list of names from a folder of .npy feature files", embeds=False)
    sub.add_argument("features", metavar="FEATURES", type=Path)
    sub.add_argument("out", metavar="OUT", type=Path)
    return parser


def main(argv: list[str] | None = None) -> int:
    return files.run_command(get_args_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
