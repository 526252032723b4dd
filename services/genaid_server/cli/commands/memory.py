"""`genaid memory`: how the engines share the machine's memory."""

from typing import Annotated

import typer

from genaid_client import Client, ImageNeed
from genaid_server.cli import options
from genaid_server.cli.command import Command
from genaid_server.cli.connect import find_server
from genaid_server.cli.output import print_json, say
from genaid_server.cli.views import leases as lease_view
from genaid_server.cli.views.progress import waiting_bar
from genaid_server.cli.views.tables import print_details, print_table

app = typer.Typer(rich_markup_mode=None)
memory = typer.Typer(
    no_args_is_help=True,
    help="Show how the engines share memory.\n\n"
    "Where there is too little for one more, others leave first: the LLM is offloaded, and comes back by itself.",
)
app.add_typer(memory, name="memory")


@memory.command("plan", cls=Command)
def plan(
    model: Annotated[
        str, typer.Option(metavar="ID", help="Model to draw with. Default: the only one for images.")
    ] = "",
    width: Annotated[int, typer.Option(metavar="PIXELS", help="Width of the image.")] = 512,
    height: Annotated[int, typer.Option(metavar="PIXELS", help="Height of the image.")] = 512,
    variant: Annotated[
        str, typer.Option(metavar="NAME", help="Runtime that computes, such as cuda12; cpu takes no GPU memory.")
    ] = "cpu",
    resource: options.ResourceServer = None,
    data_dir: options.DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Tell what an image would take, and who would have to leave for it.

    Nothing is changed. The exit status is 1 where it can't be made.
    """
    need = ImageNeed(model_id=model, width=width, height=height, variant=variant)
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        found = client.orchestration.plan_image_generation(need)
    if as_json:
        print_json(found)
    else:
        print_details(lease_view.plan_rows(found))
    if not found.possible:
        raise typer.Exit(1)


@memory.command("leases", cls=Command)
def leases(
    resource: options.ResourceServer = None, data_dir: options.DataDir = None, as_json: options.AsJson = False
) -> None:
    """Show which engines hold memory, and how much there is to share."""
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        found = client.orchestration.list_leases()
    if as_json:
        print_json(found)
        return
    print_details(lease_view.budget_rows(found))
    print()
    if found.leases:
        print_table(lease_view.LEASE_COLUMNS, lease_view.lease_rows(found), right=lease_view.SIZE_COLUMNS)
    else:
        print(lease_view.NO_LEASE)


@memory.command("offloaded", cls=Command)
def offloaded(
    resource: options.ResourceServer = None, data_dir: options.DataDir = None, as_json: options.AsJson = False
) -> None:
    """Show the LLM that was offloaded and comes back; with --json null where there is none."""
    with Client(resource=find_server(data_dir, resource=resource).resource) as client:
        now = client.orchestration.get_offloaded_llm()
    if as_json:
        print_json(lease_view.offloaded_as_object(now))
    elif now is None:
        print(lease_view.NO_OFFLOADED)
    else:
        print_details(lease_view.offloaded_rows(now))


@memory.command("forget", cls=Command)
def forget(
    resource: options.ResourceServer = None, data_dir: options.DataDir = None, as_json: options.AsJson = False
) -> None:
    """Give up on the LLM that was offloaded: it stays stopped."""
    with Client(resource=find_server(data_dir, resource=resource).resource) as client, waiting_bar("forgetting"):
        forgotten = client.orchestration.forget_offloaded_llm()
    if as_json:
        print_json({"forgotten": forgotten})
    else:
        say("The LLM stays stopped. Start one with: genaid llm start MODEL" if forgotten else lease_view.NO_OFFLOADED)
