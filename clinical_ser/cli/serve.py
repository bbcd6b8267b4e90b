"""`clinical-ser serve`: the audited HTTP API, and what is set up for it."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clinical_ser.cli import serve_keys
from clinical_ser.cli.console import FAILED, complain, literal, output, print_line
from clinical_ser.errors import ServerSetupError

app = typer.Typer(
    help="Screenings over HTTP, for record systems and for people: every answer is recorded before it is given.",
    invoke_without_command=True,
    no_args_is_help=False,
)
app.add_typer(serve_keys.app, name="keys")

Configuration = Annotated[
    Path | None, typer.Option("--config", help="The server's configuration (server.toml); otherwise where docs/hospital-it.md says.")
]


@app.callback()
def serve(
    context: typer.Context,
    config: Configuration = None,
    host: Annotated[str | None, typer.Option(help="Where to listen, in place of what the configuration says.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="On which port; 0 lets the system choose.")] = None,
    check: Annotated[bool, typer.Option("--check", help="See whether the configuration can be used, and do not serve.")] = False,
) -> None:
    """Serve until told to stop (Ctrl-C, SIGTERM). Log lines go to standard error, one JSON object each."""
    if context.invoked_subcommand is not None:
        return
    _need_libraries()
    from clinical_ser.api.configuration import ServerConfiguration
    from clinical_ser.api.serving import Running, serve
    from clinical_ser.api.serving import check as check_configuration
    from clinical_ser.audit.configuration import LogConfiguration

    configuration = ServerConfiguration.find(config)
    listen = configuration.listen.model_dump() | {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    configuration = ServerConfiguration.checked(configuration.model_dump() | {"listen": listen})
    audit = LogConfiguration.required()
    configuration.check_may_serve()
    if not configuration.someone_can_sign_in:
        complain("Nobody can sign in yet", "make an API key (`clinical-ser serve keys add`), or configure an issuer (docs/hospital-it.md).")
    if check:
        names = ", ".join(check_configuration(configuration))
        output.print(f"The configuration can be used: {literal(configuration.public_url)}, {literal(names)}, log {literal(audit.origin)}.")
        return

    def ready(running: Running) -> None:
        if output.is_terminal:
            output.print(f"Serving on {literal(running.application.service.configuration.public_url)}; Ctrl-C ends it.")

    serve(configuration, audit, ready)


@app.command()
def openapi(config: Configuration = None) -> None:
    """Print the description of the API (OpenAPI 3.1), for those who write programs against it."""
    _need_libraries()
    from clinical_ser.api.app import description
    from clinical_ser.api.configuration import ServerConfiguration

    print_line(json.dumps(description(ServerConfiguration.find(config)), indent=2, ensure_ascii=False))


@app.command()
def health(config: Configuration = None) -> None:
    """Ask the server on this machine whether it is ready: exit code 0, or 1."""
    _need_libraries()
    from clinical_ser.api.configuration import ServerConfiguration
    from clinical_ser.api.serving import is_ready

    if not is_ready(ServerConfiguration.find(config)):
        complain("Not ready", "the server on this machine does not answer, or not yet.")
        raise typer.Exit(FAILED)


def _need_libraries() -> None:
    try:
        import fastapi
        import jwt
        import prometheus_client
        import uvicorn
    except ImportError:
        raise ServerSetupError("Serving needs more libraries: pip install 'clinical-ser[serve]'.") from None
    del fastapi, jwt, prometheus_client, uvicorn
