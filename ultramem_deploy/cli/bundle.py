"""`bundle MODEL_DIR OUT` and `bundle --check DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import pipeline
from .options import EXISTING, StageOptions, json_option, quiet_option, verb
from .output import counted, print_json, progress_bar, run_stage, size


@verb("bundle", "exported bundle --with-plugins")
@click.argument("src", type=EXISTING, required=False)
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--runtime", type=click.Choice(["onnxruntime", "tensorrt"]), default="onnxruntime", show_default=True,
              help="What will run the bundle.")  # fmt: skip
@click.option("--with-plugins", is_flag=True, help="Put this platform's operator library inside.")
@click.option("--check", "checked", type=EXISTING, metavar="DIR", help="Verify a bundle's hashes and versions instead.")
@click.option("--triton", "triton", type=click.Path(path_type=Path), metavar="OUT",
              help="Write a Triton Inference Server model repository to OUT instead.")  # fmt: skip
@click.option("--triton-backend", type=click.Choice(["onnxruntime", "python", "tensorrt"]),
              default="onnxruntime", show_default=True,
              help="Which of the server's backends runs the model; of tensorrt SRC is an engine.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an output that this tool made otherwise.")
@click.option("--copy", is_flag=True, help="Copy the weights instead of hard-linking them.")
@quiet_option
@json_option
def command(
    src: Path | None,
    out: Path | None,
    runtime: str,
    with_plugins: bool,
    checked: Path | None,
    triton: Path | None,
    triton_backend: str,
    overwrite: bool,
    copy: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Bundle the exported model SRC into OUT: manifest, graph, tables, tokenizer, configuration for ONNX Runtime GenAI.

    For --runtime tensorrt SRC is an engine, NAME.engine.

    The C++ library, ONNX Runtime GenAI and this tool all run the same directory, wherever it is moved.
    """
    if checked is not None:
        if src is not None:
            raise click.UsageError("--check DIR takes no SRC and OUT")
        _check(checked, quiet, as_json)
        return
    target = out or triton
    if src is None or target is None or (out and triton):
        raise click.UsageError("expected SRC OUT, SRC --triton OUT, or --check DIR")
    common = StageOptions(src, target, overwrite, copy, quiet, as_json)
    if triton is not None:
        _triton(common, triton_backend)
        return
    run_stage(
        "bundle",
        common,
        lambda progress: pipeline.bundle(
            common.src,
            common.out,
            runtime=runtime,
            with_plugins=with_plugins,
            overwrite=overwrite,
            copy=copy,
            progress=progress,
        ),
        _summary,
        "bundle --check {out}",
    )


def _triton(common: StageOptions, backend: str) -> None:
    run_stage(
        "triton",
        common,
        lambda progress: pipeline.triton_repository(
            common.src,
            common.out,
            backend=backend,
            overwrite=common.overwrite,
            copy=common.copy,
            progress=progress,
        ),
        lambda result: [
            f"model {result['model']} for the {result['backend']} backend, docs/cpp.md says how to serve it"
        ],
        "bundle {src} {beside} --with-plugins" + (" --runtime tensorrt" if backend == "tensorrt" else ""),
    )


def _check(bundle: Path, quiet: bool, as_json: bool) -> None:
    with progress_bar("check", quiet) as progress:
        result = pipeline.check_bundle(bundle, progress=progress)
    if as_json:
        print_json(result)
        return
    files, tables = counted(result["files"], "file"), counted(result["tables"], "table")
    click.echo(f"{bundle}: ok: {files}, {size(result['bytes'])}, {tables}, versions as required")


def _summary(result: dict[str, Any]) -> list[str]:
    plugins = ", ".join(entry["file"] for entry in result["plugins"]) or _without_plugin(result)
    return [
        f"{counted(result['tables'], 'table')} of {size(result['table_bytes'])} for {result['runtime']}; {plugins}",
        f"tokenizer: {'yes' if result['tokenizer'] else 'none; programs pass token ids'}",
    ]


def _without_plugin(result: dict[str, Any]) -> str:
    return "no plugin" if result["runtime"] == "tensorrt" else "no plugin: the program brings its own"
