"""What the pages name is there: commands with their options, settings, metrics, annotations, reasons."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import typer

import cache_server.settings
import memopod.proxy.settings
import metadata_guard.settings
import metadata_store.settings
import metadata_writer.settings
from memopod.cli import app
from memopod.steps.reasons import SENTENCES

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "cache-server": ("MEMOPOD_CACHE", cache_server.settings.Settings),
    "cache-janitor": ("MEMOPOD_JANITOR", cache_server.settings.JanitorSettings),
    "metadata-writer": ("MEMOPOD_WRITER", metadata_writer.settings.Settings),
    "metadata-guard": ("MEMOPOD_METADATA_GUARD", metadata_guard.settings.Settings),
    "metadata-store": ("MEMOPOD_METADATA_STORE", metadata_store.settings.Settings),
}
ENVOY = ("MEMOPOD_ENVOY", memopod.proxy.settings.Settings)
OF_THE_TESTS = (
    "MEMOPOD_REQUIRE_SERVICES", "MEMOPOD_CHAOS", "MEMOPOD_ARTIFACTS", "MEMOPOD_OPENLINEAGE_SPEC",
    "MEMOPOD_TEST_MYSQLD",
)  # fmt: skip
OF_OTHER_PROGRAMS = {
    "--query-gpu", "--require-hashes", "--sandbox", "--all", "--as", "--set", "--single-transaction",
    "--hex-blob", "--exit-on-error", "--no-owner", "--scale", "--last-failed", "--build",
}  # fmt: skip


def fields(cls):
    """Flags of a service's settings."""
    found = {"--help", "-h"}
    for field in dataclasses.fields(cls):
        found |= {f"--{field.name}", f"--{field.name.replace('_', '-')}", *field.metadata.get("aliases", ())}
    return found


def options(command):
    return {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}


def commands(text):
    """The command lines of memopod in a page: those of its code blocks, and those within its sentences."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose)]
    for line in lines:
        if found := re.match(r"(?:\S+=\S+ )*(?:kubectl .* -- )?(?:\.venv/bin/)?memopod ([a-z-].*)", line):
            words = re.sub(r"\s#.*|\s[&>].*|\s\|\s.*", "", found[1])
            yield shlex.split(words.replace("\\|", "|"))


def check(words):
    """Raise AssertionError for a sub-command or an option that is not there."""
    command, path = typer.main.get_command(app), []
    while words and hasattr(command, "get_command") and not words[0].startswith("-"):
        first, *others = words.pop(0).split("|")
        path.append(first)
        assert all(command.get_command(None, other) for other in others), (path, others)
        command = command.get_command(None, first)
        assert command, path
    known = options(command)
    if hasattr(command, "list_commands"):  # `memopod cache --server`: whichever of them
        known = known.union(*(options(command.get_command(None, c)) for c in command.list_commands(None)))
    if path and path[0] in SETTINGS:
        known = fields(SETTINGS[path[0]][1])
    if path[:1] == ["envoy"]:
        known = known | fields(ENVOY[1])
    for word in words:
        if re.match(r"--?[a-zA-Z]", word):
            assert word.partition("=")[0] in known, (path, word)


def test_every_command_line_can_be_given(pages):
    checked = 0
    for name, text in pages.items():
        for words in commands(text):
            shown = " ".join(words)
            try:
                check(words)
            except AssertionError as error:
                raise AssertionError(f"{name}: memopod {shown}") from error
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("line", ["cache lst", "cache list --nowhere", "cache-server --listen-prt 1", "up"])
def test_a_command_line_that_cannot_be_given_is_noticed(line):
    (words,) = commands(f"`memopod {line}`")
    with pytest.raises(AssertionError):
        check(words)


def test_every_flag_in_the_text_is_one_of_some_command(pages):
    known = set(OF_OTHER_PROGRAMS)
    for _, cls in [*SETTINGS.values(), ENVOY]:
        known |= fields(cls)
    pending = [typer.main.get_command(app)]
    while pending:
        command = pending.pop()
        known |= options(command)
        if hasattr(command, "list_commands"):
            pending += [command.get_command(None, name) for name in command.list_commands(None)]
    for name, text in pages.items():
        for flag in re.findall(r"`(--[a-z][\w-]+)", text):
            assert flag in known, (name, flag)


def test_every_variable_of_the_environment_is_read_by_something(pages, sources):
    known = set(OF_THE_TESTS)
    for prefix, cls in [*SETTINGS.values(), ENVOY]:
        known |= {f"{prefix}_{field.name.upper()}" for field in dataclasses.fields(cls)}
    code = "\n".join(sources.values())
    known |= set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    for name, text in pages.items():
        for variable in re.findall(r"\bMEMOPOD_[A-Z_]+[A-Z]\b", text):
            assert variable in known or variable.removesuffix("_FILE") in known or f'"{variable}"' in code, (
                name,
                variable,
            )


def test_every_name_on_an_object_is_one_that_the_program_knows(pages, sources):
    code = "\n".join(sources.values())
    for name, text in pages.items():
        plain = text.replace("\\.", ".")
        for label in re.findall(r"\b((?:memopod\.io|pipelines\.kubeflow\.org)/[a-z_-]+[a-z])\b", plain):
            assert re.search(rf"\b{re.escape(label)}\b", code), (name, label)


def test_every_metric_in_the_text_is_exported(pages, metrics):
    for name, text in pages.items():
        for metric in re.findall(r"`((?:memopod|metadata)_[a-z_]+)[`{]", text):
            assert metric in NOT_METRICS or metric in metrics, (name, metric)


NOT_METRICS = {
    "memopod_step", "metadata_execution_id", "metadata_context_id", "metadata_written", "metadata_store",
    "metadata_input_artifact_ids", "metadata_output_artifact_ids", "metadata_writer", "metadata_guard",
    "memopod_one_type_of_a_name",
}  # fmt: skip
"""A facet of OpenLineage, Kubeflow's labels, folders, and an index of the database."""


def test_every_metric_is_described_with_its_type_and_labels(pages, metrics):
    rows = re.findall(
        r"^\| `(\w+)` \| (counter|gauge|histogram) \|([\w, ]*)\| (.+) \|$",
        pages["docs/operations.md"],
        re.MULTILINE,
    )
    described = {
        name: (kind, tuple(filter(None, labels.strip().split(", ")))) for name, kind, labels, _ in rows
    }
    assert described == metrics


def test_every_reason_is_explained_in_the_words_of_the_program(pages):
    section = pages["docs/operations.md"].partition("\n## Reasons\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (.+?) \| (.*) \|$", section, re.MULTILINE)
    assert {slug: meaning for slug, meaning, _ in rows} == SENTENCES
    assert [slug for slug, _, what_to_do in rows if not what_to_do] == ["hit"]


def test_every_event_is_explained(pages, sources):
    section = pages["docs/operations.md"].partition("\n## Events\n")[2].partition("\n## ")[0]
    code = "\n".join(
        text for path, text in sources.items() if path.startswith(("cache_server", "metadata_w"))
    )
    told = set(re.findall(r"tell\(pod, \"(\w+)\"", code)) | set(re.findall(r"reason=\"([A-Z]\w+)\"", code))
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == told
