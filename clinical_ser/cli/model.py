"""`clinical-ser model`: what models are there, what they are, and whether their bytes are what was signed."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from clinical_ser.cli.console import literal, output, print_line
from clinical_ser.cli.train import show_card
from clinical_ser.evaluation.card import Card
from clinical_ser.models.bundle import read_bundle, sign_bundle
from clinical_ser.models.registry import find_model, list_models
from clinical_ser.models.signing import SigningKey, default_key_path

app = typer.Typer(help="List, describe, verify and sign models.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="Name of an installed model, or a bundle's folder.", show_default=False)]


@app.command("list")
def list_() -> None:
    """List the models that ship and those in your model folder."""
    name, digest = Column("name", no_wrap=True), Column("digest", no_wrap=True)
    table = Table(name, "version", "task", "signature", digest, "note", box=None)
    for entry in list_models():
        note = entry.problem or ("trained on simulated speech" if entry.simulated else "")
        task = entry.task.name if entry.task else ""
        table.add_row(
            literal(entry.name), literal(entry.version or ""), literal(task), str(entry.signature or ""), (entry.digest or "")[:12], literal(note)
        )
    output.print(table)


@app.command()
def card(model: Model, as_json: Annotated[bool, typer.Option("--json", help="Print card.json.")] = False) -> None:
    """Show the card that travels with a model."""
    bundle = read_bundle(find_model(model))
    if as_json:
        print_line(json.dumps(bundle.json("card.json"), indent=2))
    else:
        show_card(Card.from_json(bundle.files["card.json"]))


@app.command()
def verify(model: Model, trusted: Annotated[bool, typer.Option("--trusted", help="Fail unless a trusted key signed it.")] = False) -> None:
    """Check every byte of a bundle against its manifest, and the manifest against its signature."""
    bundle = read_bundle(find_model(model), require_trusted=trusted)
    key = f" by key {bundle.signature.key_id}" if bundle.signature.key_id else ""
    output.print(f"{bundle.manifest.name} {bundle.manifest.version}: all files fit. Digest {bundle.digest}, {bundle.signature.state}{key}.")


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.", show_default=False)],
    key: Annotated[Path | None, typer.Option(help="Private key (PEM); this machine's otherwise.")] = None,
) -> None:
    """Sign a bundle, in place of any signature it has."""
    status = sign_bundle(bundle, SigningKey.load(key or default_key_path()))
    output.print(f"Signed by key {status.key_id}.")
