"""`clinical-ser node`: a hospital's side of training across sites.

The one idea: a node does nothing that node.toml does not allow, and `node check` says beforehand what it would refuse, and why.
"""

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clinical_ser.cli.console import literal, output, print_line, program
from clinical_ser.errors import FederationError, InvalidValueError

if TYPE_CHECKING:
    from federated.provisioning import NodeFolder

app = typer.Typer(help="A hospital's node: keys, policy, and the process that answers a consortium.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The node's folder.")]
Yes = Annotated[bool, typer.Option("--yes", help="The fingerprint was compared; do not ask.")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder, for the account that the node runs under.")],
    name: Annotated[str, typer.Option(help="What the site is called in the consortium: small letters, digits, hyphens.")],
    table: Annotated[Path, typer.Option(help="The feature table (`extract`) that is trained on; it stays where it is.")],
    origin: Annotated[str | None, typer.Option(help="The name of the node's audit log, for good, as hospital.example/federated.")] = None,
) -> None:
    """Make a node: keys, policy that allows nothing yet, audit log, systemd unit, and a kit of public parts for the coordinator."""
    from clinical_ser.audit.configuration import LogConfiguration
    from federated.names import SITE_NAME
    from federated.node import make_state
    from federated.provisioning import make_keys, policy_text, write_units

    if re.fullmatch(SITE_NAME, name) is None:
        raise InvalidValueError("--name", name, "small letters, digits and hyphens, 40 at most")
    if not table.is_file():
        raise InvalidValueError("--table", "what is no file", "a feature table that `extract` wrote")
    node = _new_folder(folder)
    kit = make_keys(node, name)
    log = LogConfiguration(origin or f"{name}.invalid/federated", f"sqlite:{node.folder / 'audit' / 'log.sqlite'}", node.folder / "audit" / "keys")
    log.create(node.folder / "audit.toml")
    make_state(node.folder, name)
    node.policy.write_text(policy_text(name, table.absolute()), encoding="utf-8")
    node.policy.chmod(0o600)
    write_units(node, _installed())
    output.print(f"The node {literal(name)} is made in {literal(folder)}. It allows nothing yet: {literal(node.policy)}")
    output.print(f"Send the coordinator {literal(node.kit / (name + '.kit.json'))}, and read out to them, by telephone, its fingerprint:")
    print_line(kit.fingerprint)
    output.print(f"Their answer is an invitation: {program()} node join {literal(folder)} INVITATION")


@app.command()
def join(folder: Folder, invitation: Annotated[Path, typer.Argument(help="The file that the coordinator sent back.")], yes: Yes = False) -> None:
    """Take the coordinator's invitation, after its fingerprint was compared."""
    from federated.provisioning import Invitation, Kit, NodeFolder, write_units
    from federated.provisioning import join as take

    node = _folder(folder)
    found = Invitation.read(invitation)
    output.print(f"Consortium {literal(found.consortium)} at {literal(found.address)}. Fingerprint of the invitation:")
    print_line(found.fingerprint)
    if not yes:
        typer.confirm("Did the coordinator read out the same?", abort=True)
    kit = Kit.read(next(iter(sorted(node.kit.glob("*.kit.json"))), node.kit / "kit.json"))
    take(node, found, kit.name)
    write_units(NodeFolder(folder), _installed(), found.address)
    output.print("Joined. In node.toml this coordinator's key is called:")
    print_line(found.identity)


@app.command()
def build() -> None:
    """Print the hash of the app that this version brings; node.toml lists the builds that may run."""
    needs_flower()
    from federated.gate import build_hash, build_of_this_version

    print_line(build_hash(build_of_this_version()))


@app.command()
def check(
    folder: Folder,
    plan: Annotated[Path | None, typer.Option(help="A plan that the coordinator proposes: say what of it would be refused.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not try to reach the coordinator.")] = False,
) -> None:
    """Say what this node would refuse, and why, before anyone asks."""
    needs_flower()
    from federated.checking import findings, summary
    from federated.plan import read_plan

    if plan is not None:
        output.print(literal(summary(read_plan(plan))))
    found = findings(_folder(folder), plan=plan, reach=not offline)
    for finding in found:
        mark = "[green]allowed[/green]" if finding.allowed else "[yellow]refused[/yellow]"
        output.print(f"{mark}  {literal(finding.what)}{': ' + literal(finding.why) if finding.why else ''}")
    if not all(finding.allowed for finding in found):
        raise typer.Exit(1)


@app.command("local-model")
def local_model(
    folder: Folder,
    plan: Annotated[Path, typer.Option(help="The plan of the run (plan.json).")],
    model: Annotated[Path, typer.Option(help="The bundle that all sites share, as the coordinator sent it.")],
    weights: Annotated[Path, typer.Option(help="The coordinator's file local-heads.weights.")],
    output_folder: Annotated[Path, typer.Option("--output", "-o", help="Folder of the site's own bundle; it must not leave the hospital.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace a bundle that is there.")] = False,
) -> None:
    """After a run with trees at each site: make the bundle that this hospital serves, with its own trees under the shared model."""
    from clinical_ser.cli.console import check_bundle_folder
    from clinical_ser.cli.train import own_key
    from federated.plan import read_plan
    from federated.stacking import make_site_bundle

    check_bundle_folder(output_folder, replace=replace)
    try:
        sealed = weights.read_bytes()
    except OSError as error:
        raise InvalidValueError("--weights", f"a file that cannot be read ({error.strerror})", "local-heads.weights, from the coordinator") from None
    published = make_site_bundle(_folder(folder).folder, read_plan(plan), model, sealed, output_folder, key=own_key(), replace=replace)
    output.print(f"Bundle written, digest {published.digest[:12]}. It holds values of this hospital's patients: it must not leave.")


@app.command("run")
def run_node(
    folder: Folder,
    through: Annotated[str | None, typer.Option(help="A proxy on this machine to dial in place of the coordinator, as localhost:8443.")] = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Where SuperNode and gate meet, on loopback; another one for every node of a machine.")
    ] = 9094,
    logs: Annotated[Path | None, typer.Option(help="A folder for what Flower writes; the terminal, or the journal, otherwise.")] = None,
) -> None:
    """Answer the consortium until stopped."""
    node = _folder(folder)
    options = ["--port", str(port)]
    options += ["--through", through] if through else []
    options += ["--logs", str(logs.absolute())] if logs else []
    # In place of this process: it has the whole command line imported, 300 MB that a node would hold for months.
    start = "from federated.provisioning import main; main()"
    os.execv(sys.executable, [sys.executable, "-P", "-c", start, str(node.folder), *options])  # noqa: S606


def needs_flower() -> None:
    """Raise FederationError in an environment without Flower."""
    if find_spec("flwr") is None:
        raise FederationError("Flower is not installed; nodes and coordinators have an environment with the extra 'federated' (docs/federated.md).")


def _new_folder(folder: Path) -> "NodeFolder":
    from federated.provisioning import NodeFolder

    if not re.fullmatch(r"[A-Za-z0-9._/-]+", str(folder.absolute())):
        raise InvalidValueError("FOLDER", "a path with other characters", "letters, digits, and . _ - / alone")
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise FederationError("The folder is there already; a node is made in a new one.") from None
    return NodeFolder(folder)


def _folder(folder: Path) -> "NodeFolder":
    from federated.provisioning import NodeFolder

    node = NodeFolder(folder)
    if not node.identity.is_file():
        raise FederationError("This is no node's folder; `node init` makes one.")
    return node


def _installed() -> str:
    return str(Path(sys.executable).parent / "clinical-ser")
