"""The list of commands."""

from typing import Annotated

import typer
from typer.core import TyperGroup

from clinical_ser.cli import (
    audit,
    cache,
    cohort,
    consortium,
    demo,
    doctor,
    embed,
    encoder,
    evaluate,
    gate,
    model,
    model_changes,
    monitor,
    node,
    node_demo,
    pccp,
    plan,
    registry,
    serve,
    train,
    update,
)
from clinical_ser.cli.compare import compare
from clinical_ser.cli.console import INTERRUPTED, complain, output
from clinical_ser.cli.explain import explain
from clinical_ser.cli.report import report
from clinical_ser.cli.screen import screen


class _Commands(TyperGroup):
    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run a command; Ctrl-C ends it here, because what typer makes of it differs between its versions."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            complain("Interrupted", "What was finished is kept; `simulate`, `demo` and `extract --cache` go on from there.")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="clinical-ser",
    cls=_Commands,
    help="Speech screening: a recording in, an explained and calibrated result out, or an honest 'cannot tell'. Screening, never diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        output.print(version("clinical-ser"))
        raise typer.Exit


@app.callback()
def _options(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


app.command()(screen)
app.command()(explain)
app.command()(report)
app.command()(compare)
app.command()(demo.demo)
app.command()(cohort.simulate)
app.command()(cohort.cohort)
app.command()(cohort.extract)
app.command()(embed.embed)
app.add_typer(embed.app, name="embeddings")
app.command()(train.train)
app.command()(update.update)
app.command()(evaluate.evaluate)
app.command()(plan.plan)
app.command()(gate.gate)
for act in (model_changes.approve, model_changes.shadow, model_changes.promote, model_changes.rollback, model_changes.withdraw):
    model.app.command()(act)
app.add_typer(model.app, name="model")
app.add_typer(registry.app, name="registry")
app.add_typer(pccp.app, name="pccp")
app.add_typer(monitor.app, name="monitor")
app.add_typer(encoder.app, name="encoder")
app.add_typer(cache.app, name="cache")
app.add_typer(audit.app, name="audit")
app.add_typer(serve.app, name="serve")
node.app.command()(node_demo.demo)
app.add_typer(node.app, name="node")
app.add_typer(consortium.app, name="consortium")
app.command()(doctor.doctor)
