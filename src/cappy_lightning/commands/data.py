"""The commands that make data or look at it: generate, label, inspect."""

import argparse
import json
from pathlib import Path

from cappy_lightning.commands.inputs import check_outputs, load_sections, open_sources, read_words
from cappy_lightning.files import find_parts
from cappy_lightning.progress import console, say, show_places
from cappy_lightning.sources.config import Shard


def generate(options: argparse.Namespace) -> int:
    """`cappy generate`: examples to a pool file."""
    from cappy_lightning.backbones.generate import record_pools
    from cappy_lightning.labeling.weak_labels import with_split

    sources, config, out = open_sources(options, ".jsonl", "backbone", "data")
    first = next(iter(sources.pools()), None)
    if first and first.candidates and not first.example.choices:
        say("the answers that rows have are left aside: the LLM is asked for all")
    examples = with_split(sources.distinct, config.data.validation_fraction, config.data.seed)
    for note in sources.notes():
        say(note)
    record_pools(examples, config.backbone, out, part=sources.partial)
    print(out)
    return 0


def label(options: argparse.Namespace) -> int:
    """`cappy label`: examples or pools to instances."""
    from cappy_lightning.label import label as label_examples

    sources, config, out = open_sources(options, "", "label", "data")
    label_examples(sources, config, out, options.split)
    print(out)
    return 0


def inspect(options: argparse.Namespace) -> int:
    """`cappy inspect`: what is in pools, examples or instances."""
    from cappy_lightning.inspection.instances import inspect_instances
    from cappy_lightning.inspection.page import findings_page, findings_row, print_findings
    from cappy_lightning.inspection.pools import inspect_pools
    from cappy_lightning.page import write_page

    check_outputs(options.html)
    sections = ("scorer", "label", "data")
    folder = Path(options.source)
    if folder.is_dir() and not find_parts(folder, ".jsonl"):
        findings = inspect_instances([folder], load_sections(options.config, *sections))
    else:
        sources, config = read_words(options.source, options.config, Shard(), *sections)
        findings = inspect_pools(sources.pools(), options.source, config)
        findings.facts += sources.notes()
    if options.json:
        print(json.dumps(findings_row(findings)))
    else:
        print_findings(findings, console())
    if options.html:
        write_page(findings_page(findings), Path(options.html))
        if not options.json:
            show_places(options.html)
    return 0
