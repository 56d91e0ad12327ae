"""Puts the commands together."""

import typer

from stagemesh.cli import (
    admin,
    bench,
    demo,
    doctor,
    events,
    generate,
    infer,
    passthrough,
    plan,
    recut,
    rollout,
    serve,
    status,
)

app = typer.Typer(
    name="stagemesh",
    help="Serve models cut into stages, as a mesh of gRPC services.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command("serve")(serve.serve)
app.command("demo")(demo.demo)
app.command("generate")(generate.generate)
app.command("infer")(infer.infer)
app.command("status")(status.status)
app.command("bench", epilog=bench.EXAMPLES)(bench.bench)
app.command("deploy")(admin.deploy)
app.command("scale")(admin.scale)
app.command("undeploy")(admin.undeploy)
app.command("doctor")(doctor.doctor)
app.command("events")(events.events)
app.command("plan")(plan.plan)
app.add_typer(rollout.app, name="rollout")
app.command("recut")(recut.recut)
passthrough.register(app)


@app.command("version")
def version() -> None:
    """Print the version."""
    from stagemesh import __version__

    typer.echo(__version__)
