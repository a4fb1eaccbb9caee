"""The words of the command line: every command with its options and its help."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from cappy_lightning import __version__
from cappy_lightning.config import (
    BACKBONE_OF_SERVE,
    AnswerConfig,
    BackboneConfig,
    Config,
    LabelConfig,
    SelectConfig,
    ServeConfig,
    SlurmConfig,
)
from cappy_lightning.records import SPLITS
from cappy_lightning.schema import all_keys, describe_keys
from cappy_lightning.sources.config import SourceConfig, SourcesConfig

#: The keys of the section `select` that a choice goes by; the others are for trainings.
SELECT_OF_CHOICES = ("by",)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; `command` is the name of the command.

    Exits with 2, after the usage and one line, on a word that no command knows, and with 0 after `--help`.
    """
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for what could come next
        import argcomplete

        argcomplete.autocomplete(parser)
    options, rest = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in rest) or (rest and "config" not in options):
        own = command_parsers()[" ".join(filter(None, (options.command, getattr(options, "benchmark", None))))]
        own.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse gives up on key=value words that come after an option
        options.config += rest
    return options


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command by its name; a benchmark's is `evaluate NAME`."""
    found: dict[str, argparse.ArgumentParser] = {}
    for name, parser in _subparsers(_parser()).items():
        below = _subparsers(parser)
        found |= {f"{name} {own}": nested for own, nested in below.items()} or {name: parser}
    return found


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: own for action in actions for name, own in action.choices.items()}


_SOURCES_HELP = (
    "\n\nA sources file (YAML) has the keys:\n"
    + describe_keys(SourcesConfig)
    + "\n\nand each of its sources:\n"
    + describe_keys(SourceConfig)
)

_EXIT_CODES = (
    "exit codes: 0 done; 2 input that cannot be used, said in one line; 130 interrupted by Ctrl-C, 143 by SIGTERM\n"
    "(train, generate, label, score, select, answer and evaluate continue with the same command)"
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cappy",
        description="Cappy: a small scorer that picks the best answer of an LLM.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cappy-lightning {__version__}")
    quiet = "say nothing but errors and results"
    parser.add_argument("-q", "--quiet", action="store_true", help=quiet)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help=quiet)

    def add(name: str, below: Any = commands, **more: Any) -> argparse.ArgumentParser:
        formatter = argparse.RawDescriptionHelpFormatter
        found: argparse.ArgumentParser = below.add_parser(name, parents=[common], formatter_class=formatter, **more)
        return found

    train = add(
        "train",
        help="adapt or pretrain a scorer",
        description="Train a scorer by a recipe. Later files and words override earlier ones.\n\n"
        "  cappy train conf/quickstart.yaml\n"
        "  cappy train conf/adapt.yaml data.pool=my_pool.jsonl seed=1\n"
        "  cappy train conf/pretrain.yaml conf/smoke.yaml",
        epilog="Keys:\n" + describe_keys(Config),
    )
    train.add_argument("config", nargs="*", metavar="RECIPE.yaml [OVERLAY.yaml ...] [key=value ...]")
    train.add_argument("--json", action="store_true", help="print the metrics as one JSON object")

    generate = add(
        "generate",
        help="let an LLM propose candidates for examples",
        description="Examples become a pool file (JSONL). Run it again after an interruption to continue.\n\n"
        "  cappy generate examples.jsonl -o pool.jsonl backbone.shots=8\n"
        "  cappy generate sources.yaml -o pool.jsonl backbone.kind=openai backbone.url=http://localhost:8000 \\\n"
        "      backbone.model=NAME backbone.chat=true",
        epilog="Keys:\n" + describe_keys(BackboneConfig, "backbone.") + _SOURCES_HELP,
    )
    _source_options(generate, "EXAMPLES", "POOL.jsonl", "backbone")

    label = add(
        "label",
        help="turn examples or pools into weakly labelled instances",
        description="Examples or pools become a directory of instances (Parquet shards and a manifest). Run it again\n"
        "after an interruption to continue.\n\n"
        "  cappy label pool.jsonl -o instances/train\n"
        "  cappy label pool.jsonl -o instances/validation --split validation\n"
        "  cappy label conf/sources/t0.yaml templates=promptsource/promptsource/templates -o t0 --shard 0/64",
        epilog="Keys:\n" + describe_keys(LabelConfig, "label.") + _SOURCES_HELP,
    )
    _source_options(label, "POOLS", "DIRECTORY", "label")
    label.add_argument(
        "--split",
        choices=SPLITS,
        default="train",
        help="train (default): all examples but those of the split validation; validation: the candidates of those",
    )

    inspect = add(
        "inspect",
        help="look at instances, pools or examples",
        description="Counts by task and origin, scores, lengths in tokens, the worst tasks and sample rows.\n\n"
        "  cappy inspect instances/train --html page.html\n"
        "  cappy inspect pool.jsonl scorer.base=roberta-large scorer.max_length=512",
    )
    inspect.add_argument("source", metavar="PATH", help="directory of instances, pool or example file, sources file")
    inspect.add_argument("config", nargs="*", metavar="[scorer.key=value ...] [label.key=value ...]")
    inspect.add_argument("--json", action="store_true", help="print facts, tables and histograms as one JSON object")
    inspect.add_argument("--html", metavar="PAGE.html", help="write one self-contained page, too")

    score = add(
        "score",
        help="score pairs",
        description='Rows {"instruction", "response", ...} (JSONL) come out with "score" and "logit" added. Run it\n'
        "again after an interruption to continue.\n\n"
        "  cappy score pairs.jsonl --scorer runs/quickstart/adapter -o scores.jsonl",
    )
    _scorer_options(score, "PAIRS.jsonl")

    select = add(
        "select",
        help="select the best candidate of each pool",
        description="Pools (JSONL) become selections (JSONL); where the pools have references or choices, a report is\n"
        "printed, too. Run it again after an interruption to continue.\n\n"
        "  cappy select pool.jsonl --split validation --scorer runs/mine/adapter -o chosen.jsonl --html report.html\n"
        "  cappy select pool.jsonl --scorer runs/tickets/adapter -o selections.jsonl select.by=fused",
        epilog="Keys:\n"
        + describe_keys(SelectConfig, "select.", SELECT_OF_CHOICES)
        + "\n"
        + describe_keys(LabelConfig, "label."),
    )
    _scorer_options(select, "POOL.jsonl")
    select.add_argument("config", nargs="*", metavar="[select.by=fused] [label.key=value ...]")
    select.add_argument("--split", choices=SPLITS, help="only pools of this one; default: all")
    _beside(select)
    select.add_argument("--report", metavar="REPORT.json", help="write the report as JSON, too")
    select.add_argument("--html", metavar="PAGE.html", help="write the report as one self-contained page, too")

    answer = add(
        "answer",
        help="let an LLM answer instructions, and keep the best of what it says",
        description="An LLM proposes candidates for each instruction, and the best is the answer. Rows (JSONL, CSV,\n"
        "Parquet) need nothing but an instruction. Run it again after an interruption to continue.\n\n"
        '  cappy answer --instruction "Subject for: the parcel is late" --scorer runs/quickstart/adapter\n'
        "  cappy answer questions.jsonl -o answers.jsonl --scorer runs/quickstart/adapter answer.stop=0.6 \\\n"
        "      backbone.kind=openai backbone.url=http://localhost:8000 backbone.model=NAME backbone.chat=true",
        epilog="Keys:\n"
        + "\n".join(
            [
                describe_keys(AnswerConfig, "answer."),
                describe_keys(SelectConfig, "select.", SELECT_OF_CHOICES),
                describe_keys(BackboneConfig, "backbone."),
            ]
        ),
    )
    answer.add_argument("source", nargs="?", metavar="EXAMPLES", help="JSONL, CSV or Parquet, or a sources file (YAML)")
    answer.add_argument("config", nargs="*", metavar="[FILE.yaml ...] [answer.key=value ...] [backbone.key=value ...]")
    answer.add_argument("-o", "--out", metavar="ANSWERS.jsonl")
    _candidates(answer)
    answer.add_argument("--instruction", metavar="TEXT", help="answer this one, on standard output")
    answer.add_argument("--task", metavar="NAME", help="with --instruction: whose adapter, of several")
    answer.add_argument("--shard", metavar="I/N", help="only part I (from 0) of N, into a place of its own in OUT")
    answer.add_argument("--json", action="store_true", help="with --instruction: print answer and candidates as JSON")
    answer.add_argument("--report", metavar="REPORT.json", help="write the report as JSON, too")
    answer.add_argument("--html", metavar="PAGE.html", help="write it as one self-contained page, too")
    _scorer(answer)

    calibrate = add(
        "calibrate",
        help="choose the scores at which sampling stops and no answer is given",
        description="Pools with references (JSONL), none of them used in the training, say what sampling one by one\n"
        "would have given. The thresholds are written as an overlay for `cappy answer` and `cappy serve`.\n\n"
        "  cappy calibrate pool.jsonl --scorer runs/quickstart/adapter -o answer.yaml --html page.html\n"
        "  cappy calibrate pool.jsonl --scorer runs/quickstart/adapter -o answer.yaml --precision 0.6\n"
        "  cappy answer questions.jsonl -o answers.jsonl --scorer runs/quickstart/adapter answer.yaml",
        epilog="Keys:\n"
        + "\n".join(
            [
                describe_keys(AnswerConfig, "answer."),
                describe_keys(SelectConfig, "select.", SELECT_OF_CHOICES),
                describe_keys(LabelConfig, "label."),
            ]
        ),
    )
    calibrate.add_argument(
        "source", metavar="POOL.jsonl", help="pools; where some are of the split validation, only these"
    )
    calibrate.add_argument("config", nargs="*", metavar="[answer.step=N] [select.by=fused] [label.key=value ...]")
    calibrate.add_argument("-o", "--out", default="-", metavar="ANSWER.yaml", help="default: standard output")
    calibrate.add_argument(
        "--keep",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of the reward of all candidates that is kept (default: 1)",
    )
    calibrate.add_argument(
        "--precision", type=float, metavar="REWARD", help="mean reward, from 0 to 1, of the answers that are given"
    )
    calibrate.add_argument("--report", metavar="REPORT.json", help="write thresholds, promises and curves as JSON, too")
    calibrate.add_argument("--html", metavar="PAGE.html", help="write table and curves as one page, too")
    _scorer(calibrate)

    serve = add(
        "serve",
        help="an HTTP service in front of an LLM, whose answers are the best of several",
        description="Clients of the OpenAI API get chosen answers by another base URL; /score and /rerank score what\n"
        "is sent. The LLM's key is taken from $OPENAI_API_KEY, that of the clients from $CAPPY_API_KEY.\n\n"
        "  cappy serve --scorer runs/quickstart/adapter                         # in front of the packaged LLM\n"
        "  cappy serve --scorer runs/quickstart/adapter answer.yaml serve.port=9000 \\\n"
        "      backbone.kind=openai backbone.url=http://localhost:8000 backbone.model=NAME\n"
        "  cappy serve --scorer btan2/cappy-large --adapter tickets=runs/a/adapter --adapter faq=runs/b/adapter",
        epilog="Keys:\n"
        + "\n".join(
            [
                describe_keys(ServeConfig, "serve."),
                describe_keys(AnswerConfig, "answer."),
                describe_keys(SelectConfig, "select.", SELECT_OF_CHOICES),
                describe_keys(BackboneConfig, "backbone.", BACKBONE_OF_SERVE),
            ]
        ),
    )
    serve.add_argument("config", nargs="*", metavar="[FILE.yaml ...] [serve.key=value ...] [backbone.key=value ...]")
    _candidates(serve)
    _scorer(serve)

    evaluate = commands.add_parser(
        "evaluate", help="run a benchmark of the paper", description="Run one of the two benchmarks of the paper."
    )
    benchmarks = evaluate.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    bigbench = add(
        "bigbench",
        benchmarks,
        help="an LLM's answers to BIG-bench's generation tasks, chosen by a scorer adapted to each",
        description="Run a recipe for every task: candidates, adaptation, selection; then one report. Run it again\n"
        "after an interruption to continue.\n\n"
        "  cappy evaluate bigbench conf/bigbench.yaml --tasks tense,operators -o runs/bigbench\n"
        "  cappy evaluate bigbench conf/paper_bigbench.yaml conf/gpu.yaml -o runs/flan-t5-xl",
        epilog="Keys: those of `cappy train`.",
    )
    bigbench.add_argument("config", nargs="*", metavar="RECIPE.yaml [OVERLAY.yaml ...] [key=value ...]")
    bigbench.add_argument("-o", "--out", required=True, metavar="DIRECTORY")
    bigbench.add_argument(
        "--tasks", type=lambda text: text.split(","), default=[], help="names, with commas; default: the paper's 45"
    )
    bigbench.add_argument("--backbone", metavar="KIND", help="the same as backbone.kind=KIND")
    bigbench.add_argument("--scorer", metavar="BASE", help="what is adapted to each task; the same as scorer.base=BASE")
    _beside(bigbench)
    bigbench.add_argument("--shard", metavar="I/N", help="only every Nth task, from task I (from 0); for job arrays")
    bigbench.add_argument("--json", action="store_true", help="print the report as one JSON object")

    promptsource = add(
        "promptsource",
        benchmarks,
        help="a scorer alone as a classifier, over templates",
        description="Accuracy of a scorer on data sets with PromptSource templates, or on a test file of the\n"
        "reference implementation. Run it again after an interruption to continue.\n\n"
        "  cappy evaluate promptsource conf/sources/held_out.yaml --scorer btan2/cappy-large -o runs/promptsource\n"
        "  cappy evaluate promptsource mine.yaml --scorer runs/quickstart/adapter -o runs/mine",
        epilog="A sources file is that of `cappy label`.",
    )
    promptsource.add_argument("source", metavar="SOURCES.yaml", help="sources file, or JSONL of examples or tests")
    promptsource.add_argument("config", nargs="*", metavar="[key=value ...]", help="for the sources file")
    promptsource.add_argument("-o", "--out", required=True, metavar="DIRECTORY")
    promptsource.add_argument("--scorer", required=True, help="a saved scorer, an adapter, or a hub name")
    promptsource.add_argument("--adapter", help="an adapter to put onto the scorer")
    promptsource.add_argument("--activation", choices=("sigmoid", "identity"), help="for scorers that do not say it")
    _beside(promptsource)
    promptsource.add_argument("--json", action="store_true", help="print the report as one JSON object")

    export = add(
        "export",
        help="turn a run, a checkpoint or a scorer into an adapter, a model directory or ONNX",
        description="What is written is loaded back and compared before it counts. A run gives its latest checkpoint;\n"
        "directories with the shards of ZeRO need neither GPUs nor as many processes as have written them.\n\n"
        "  cappy export runs/quickstart -o adapter\n"
        "  cappy export runs/pretrain/checkpoints/step-5000.ckpt -o model\n"
        "  cappy export runs/quickstart/adapter -o merged --as model\n"
        "  cappy export btan2/cappy-large -o onnx --as onnx\n"
        "  cappy score pairs.jsonl --scorer onnx -o scores.jsonl",
    )
    export.add_argument("source", metavar="SOURCE", help="run directory, checkpoint, adapter, saved scorer, hub name")
    export.add_argument("-o", "--out", required=True, metavar="DIRECTORY")
    export.add_argument(
        "--as",
        dest="kind",
        choices=("adapter", "model", "onnx", "onnx-int8"),
        help="default: what the run exports itself; model: one model, adapters merged into it; onnx: the same as a"
        " graph for ONNX Runtime; onnx-int8: with weights of 8 bits, faster on CPUs and a little less exact",
    )
    export.add_argument("--activation", choices=("sigmoid", "identity"), help="of a saved scorer that does not say it")

    submit = add(
        "submit",
        help="queue a training, recording, labelling, benchmark or export, or a chain of them, under SLURM",
        description="Check a command, write a batch script for it, and submit that. In a chain each job starts when"
        " the one before has ended well.\n\n"
        "  cappy submit conf/pretrain.yaml conf/zero2.yaml data.instances=instances slurm.nodes=4"
        " slurm.gpus_per_node=8 slurm.time=24:00:00\n"
        "  cappy submit label examples.jsonl -o instances slurm.array=0-63%8\n"
        "  cappy submit --cluster mine.yaml generate examples.jsonl -o pools slurm.array=0-63%8 \\\n"
        "      then label pools -o instances then conf/pretrain.yaml data.instances=instances",
        epilog="Keys:\n" + describe_keys(SlurmConfig, "slurm."),
    )
    submit.add_argument("--cluster", metavar="FILE.yaml", help="a section `slurm` for all jobs of a chain")
    submit.add_argument("--json", action="store_true", help="print the jobs as a list of JSON objects")
    submit.add_argument("--dry-run", action="store_true", help="print the scripts; submit nothing")
    submit.add_argument("words", nargs=argparse.REMAINDER, metavar="[COMMAND] WORDS [then ...]")

    jobs = add(
        "jobs",
        help="what has become of submitted jobs",
        description="State, progress, restarts and reasons of the jobs that `cappy submit` has queued from a folder.\n"
        "\n"
        "  cappy jobs\n"
        "  cappy jobs runs instances --json",
    )
    jobs.add_argument("folder", nargs="*", default=["."], help="where runs and outputs lie, up to three levels below")
    jobs.add_argument("--json", action="store_true", help="print a list of JSON objects")

    memory = add(
        "memory",
        help="estimate the memory that a recipe needs on each device",
        description="Builds the model without its weights and counts what a step keeps.\n\n"
        "  cappy memory conf/pretrain.yaml conf/gpu.yaml conf/zero2.yaml trainer.devices=8",
    )
    memory.add_argument("config", nargs="*", metavar="RECIPE.yaml [OVERLAY.yaml ...] [key=value ...]")
    memory.add_argument("--json", action="store_true", help="print one JSON object")
    for command in (*commands.choices.values(), bigbench, promptsource):
        for action in command._actions:
            if action.dest == "config":
                action.completer = _complete_words  # type: ignore[attr-defined]  # argcomplete's own
    return parser


def _complete_words(prefix: str, **_: Any) -> list[str]:
    """Keys, folders and YAML files, for the shell."""
    folder, start = os.path.split(prefix)
    try:
        entries = [entry for entry in os.scandir(folder or ".") if entry.name.startswith(start)]
    except OSError:
        entries = []
    files = [entry for entry in entries if entry.is_dir() or entry.name.endswith((".yaml", ".yml"))]
    paths = [os.path.join(folder, entry.name) + ("/" if entry.is_dir() else "") for entry in files]
    return [*(name for key in all_keys(Config) if (name := f"{key}=").startswith(prefix)), *paths]


def _source_options(parser: argparse.ArgumentParser, what: str, out: str, section: str) -> None:
    parser.add_argument("source", metavar=what, help="JSONL, CSV or Parquet, or a sources file (YAML)")
    parser.add_argument("config", nargs="*", metavar=f"[RECIPE.yaml ...] [{section}.key=value ...]")
    parser.add_argument("-o", "--out", required=True, metavar=out, help="what is made, new")
    parser.add_argument("--shard", metavar="I/N", help="only part I (from 0) of N, into a place of its own in OUT")


def _beside(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="SCORER",
        help="another scorer as a row of the report, used as it is: any classifier with one logit, such as a reward"
        " model or a reranker; can be repeated",
    )


def _scorer_options(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("source", nargs="?", default="-", metavar=what, help="input file; - or nothing: standard input")
    parser.add_argument("-o", "--out", default="-", metavar="OUT.jsonl", help="a new file; default: standard output")
    _scorer(parser)


def _candidates(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", type=int, metavar="N", help="candidates: one greedy, the others of temperature 0.7 (default: 8)"
    )


def _scorer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scorer", required=True, help="a saved scorer, an adapter, or a hub name")
    parser.add_argument(
        "--adapter",
        action="append",
        metavar="[TASK=]ADAPTER",
        help='an adapter to put onto the scorer; several, each with its task: the rows\' "task" says which',
    )
    parser.add_argument(
        "--activation", choices=("sigmoid", "identity"), help="for scorers that do not say it themselves"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the weights while scoring (default: float32); bfloat16 is faster on GPUs and recent CPUs, less exact",
    )
