"""Search music by meaning, and measure how well it works.

    search   the pieces of a folder that are most similar to a sentence, a text, or a piece of music
    metrics  how high each query of a folder ranks its own partner in another folder (MRR, Hit@k, median rank)
    score    how similar two folders are as a whole: generated music and real music, say
    pack     many small feature files -> one matrix, which is searched from the disk

examples:
  python semantic_search.py search "a fast Irish dance" music/ --html hits.html
  python semantic_search.py search humming.mid music/ --top_k 5
  python semantic_search.py search "book.abc#12" features/music          # the twelfth tune of a book
  python semantic_search.py search --queries questions.txt music/        # a line each; prints a JSON line a query
  python semantic_search.py metrics features/text features/music --ranks ranks.jsonl
  python semantic_search.py metrics texts/ music/ --several              # waltz.1.txt, waltz.2.txt: of waltz.abc
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
import re
import sys
from pathlib import Path

import command_line

if __name__ == "__main__":
    command_line.begin()  # before the imports below, which take a while

import numpy as np

import cache
import config
import features
import files
import intervals
import pieces
import published
import retrieval
from command_line import at_least
from features import INPUT_SUFFIXES, Features, require_alike
from files import InputError
from queries import or_error, read_lines, read_queries, read_query, shown_file

PROTOCOLS = (
    "candidates: all references; ties: the partner ranks last",
    "published: candidates: references with a partner; ties: the partner ranks first",
)
NUMBER = re.compile(r"\.\d+$")  # ends the stem of one of several files: waltz.1, waltz.2


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
        other = files.counted(len(others), "files of other types")
        raise InputError(f"{folder}: there is no music, text or .npy file in it ({other})")
    if others:
        print(
            files.printable(f"{folder}: {files.counted(len(others), 'files of other types')} left alone"),
            file=sys.stderr,
        )
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
        raise InputError(
            f"{folder}: of its {files.counted(len(found), 'files')}, none can be used; the first: {result.skipped[0]}"
        )
    result.matrix = np.stack(rows)
    return result


def source_of(folder: Path, name: str) -> Path:
    """Return the file of a piece, `#N` included."""
    return (folder.parent if folder.is_file() else folder) / name


def read_folders(first_dir: Path, second_dir: Path) -> tuple[Features, Features]:
    """Read the features of two folders that can be compared."""
    first, second = read_folder(first_dir), read_folder(second_dir)
    require_alike(first_dir, first, second_dir, second)
    return first, second


def pair_up(
    first_dir: Path, first: Features, second_dir: Path, second: Features, several: bool = False
) -> list[tuple[int, int]]:
    """Return the row numbers of the files with the same path but for the extension.

    With `several`, `a.1.abc` and `a.2.abc` are `a` too, and every file of a name is paired with all of that name.
    Raises InputError if else two files of a folder differ in the extension only, or if there is no pair.
    """
    rows: list[dict[str, list[int]]] = []
    for folder, of in ((first_dir, first), (second_dir, second)):
        by_name: dict[str, list[int]] = {}
        for row, name in enumerate(of.names):
            key = features.without_suffix(name)
            by_name.setdefault(NUMBER.sub("", key) if several else key, []).append(row)
        doubles = next((same for same in by_name.values() if len(same) > 1), None)
        if doubles and not several:
            both = f"{of.names[doubles[0]]} and {of.names[doubles[1]]}"
            raise InputError(f"{folder}: {both} are one piece; which is the partner? Keep one")
        rows.append(by_name)
    pairs = [(row, other) for name, same in rows[0].items() for row in same for other in rows[1].get(name, [])]
    if not pairs:
        raise InputError(
            f"no file of {first_dir} has the path of one of {second_dir}: {first.names[0]} and {second.names[0]}, say"
        )
    return pairs


def search(args: argparse.Namespace) -> int:
    if args.queries:
        return search_all(args)
    query, references = read_query(args.query), read_folder(args.ref)
    require_alike(args.query, query, args.ref, references)
    [hits] = find_hits(query.matrix, references, args.top_k)
    print_hits(hits)
    report_fewer(args, references)
    if args.html:
        import page

        sources = [source_of(args.ref, hit["name"]) if references.titles else None for hit in hits]
        searched = f"{len(references.names):,} pieces in {args.ref}"
        page.write(args.html, query.names[0], shown_file(args.query), hits, sources, searched)
    return finish(args, {"query": args.query, "hits": hits}, {str(args.ref): references})


def search_all(args: argparse.Namespace) -> int:
    """Answer each line of a file, or of standard input, with a line of JSON: its query and `hits`, or `error`."""
    if args.html:
        raise InputError("--html shows the hits of one query; leave it out, or --queries")
    lines = read_lines(args.query)
    queries, references = read_queries(lines), read_folder(args.ref)
    for number, (line, query) in enumerate(zip(lines, queries, strict=True)):
        if isinstance(query, Features):
            queries[number] = or_error(require_alike, line, query, args.ref, references) or query
    usable = [query.matrix for query in queries if isinstance(query, Features)]
    if not usable:
        raise InputError(
            f"{args.query}: of its {files.counted(len(lines), 'lines')}, none can be used; the first: {queries[0]}"
        )
    found = iter(find_hits(np.concatenate(usable), references, args.top_k))
    answers = []
    for line, query in zip(lines, queries, strict=True):
        answers.append(
            {"query": line} | ({"hits": next(found)} if isinstance(query, Features) else {"error": str(query)})
        )
        print(json.dumps(answers[-1]))
    report_fewer(args, references)
    failed = [f"line {n}: {answer['error']}" for n, answer in enumerate(answers, 1) if "error" in answer]
    features.report(f"lines of {args.query} without an answer", failed)
    return finish(args, {"queries": answers}, {str(args.ref): references}) or int(bool(failed))


def find_hits(queries: np.ndarray, references: Features, top_k: int) -> list[list[dict]]:
    """Return the hits of queries [Q, H], best first."""
    result = []
    for scores, rows in zip(*retrieval.top_k(queries, references.matrix, top_k), strict=True):
        hits = []
        for rank, (score, row) in enumerate(zip(scores, rows, strict=True), start=1):
            hits.append({"rank": rank, "score": round(float(score), 6), "name": references.names[row]})
            if references.titles:
                hits[-1]["title"] = references.titles[row]
        result.append(hits)
    return result


def report_fewer(args: argparse.Namespace, references: Features) -> None:
    count = len(references.names)
    if args.top_k > count:
        fewer = f"{args.ref} holds {count} pieces, fewer than the {args.top_k} asked for"
        print(files.printable(fewer), file=sys.stderr)


def print_hits(hits: list[dict]) -> None:
    names = [files.printable(hit["name"]) for hit in hits]
    width = max(map(len, names))
    print("rank   score  name")
    for hit, name in zip(hits, names, strict=True):
        title = files.printable(hit.get("title", ""))
        print(f"{hit['rank']:4d}  {hit['score']:6.4f}  {name:{width}}  {title}".rstrip())


def metrics(args: argparse.Namespace) -> int:
    queries, references = read_folders(args.query_dir, args.ref_dir)
    pairs = pair_up(args.query_dir, queries, args.ref_dir, references, args.several)
    rows, partners = np.array(pairs).T  # [P] each
    candidates, own = references.matrix, partners
    if args.published:
        with_partner, own = np.unique(partners, return_inverse=True)
        candidates = references.matrix[with_partner]
    rank, score = retrieval.ranks(queries.matrix[rows], candidates, own, ties_first=not args.published)
    best, rank = retrieval.best_of_several(rows, rank, score)  # [Q] each
    measured = retrieval.measures(rank)
    by_chance = retrieval.chance(len(candidates), np.unique(rows, return_counts=True)[1])
    asked = [features.without_suffix(queries.names[row]) for row in rows[best]]
    asked = [NUMBER.sub("", name) for name in asked] if args.several else asked
    rng = np.random.default_rng(0)
    spread = intervals.of_groups(lambda counts: retrieval.measures(np.repeat(rank, counts)), asked, rng)
    partner = "their partners" if args.several else "one partner"
    print(f"{files.counted(len(rank), 'queries')}, each with {partner} among {len(candidates)} pieces")
    print(f"{'':12}{'measured':>10}{'95 % interval':>20}{'by chance':>11}")
    for name, value in measured.items():
        digits = 1 if name == "median rank" else 4
        interval = "[{:.{d}f}, {:.{d}f}]".format(*spread[name], d=digits)
        print(f"{name:12}{value:10.{digits}f}{interval:>20}{by_chance[name]:11.{digits}f}")
    if args.ranks:
        with files.atomic_write(args.ranks, "w", encoding="utf-8", errors="backslashreplace") as file:
            for pair, r in zip(best, rank, strict=True):
                names = {"query": queries.names[rows[pair]], "reference": references.names[partners[pair]]}
                line = names | {"rank": int(r), "score": round(float(score[pair]), 6)}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    result: dict = {"queries": len(rank), "references": len(candidates), "protocol": PROTOCOLS[args.published]}
    result |= {"measured": measured, "intervals": spread, "by_chance": by_chance}
    result["made_with"] = queries.made_with | references.made_with
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
    parser = command_line.summarized(__doc__)
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
    about = "QUERY is a file with a query on each line, or - for standard input; print a line of JSON for each"
    sub.add_argument("--queries", action="store_true", help=about)
    sub.add_argument("--top_k", type=at_least(1), default=10, metavar="N", help="how many to show (default: 10)")
    sub.add_argument("--html", type=Path, metavar="FILE", help="write a page with the hits, to see and play, there")

    sub = command(metrics, "how high each query ranks its partner: the file of REF_DIR of the same path")
    sub.add_argument("query_dir", metavar="QUERY_DIR", type=Path)
    sub.add_argument("ref_dir", metavar="REF_DIR", type=Path, help="every file in it is a candidate, paired or not")
    about = "name.1.abc, name.2.abc, ... are all partners of name; the rank is that of the best one"
    protocol = sub.add_mutually_exclusive_group()
    protocol.add_argument("--several", action="store_true", help=about)
    about = "as the published script: only pieces with a partner are candidates, and ties favour the partner"
    protocol.add_argument("--published", action="store_true", help=about)
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
