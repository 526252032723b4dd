"""Downloads, both ways."""

from genaid.resource.v1 import downloads_pb2, models_pb2
from genaid_server.common.times import duration_to_pb, time_to_pb
from genaid_server.kit.errors import InvalidRequestError
from genaid_server.resource.convert.models import COMPONENTS, TYPES, model_to_pb, type_from_pb
from genaid_server.resource.core.downloads.download import Download, DownloadPhase, DownloadSpec, FileProgress
from genaid_server.resource.core.downloads.remote import HubFile, Item
from genaid_server.resource.core.store.model import Component, Model

_COMPONENTS_BACK: dict[int, Component] = {number: each for each, number in COMPONENTS.items()}
_PHASES = {phase: downloads_pb2.DownloadPhase.Value(f"DOWNLOAD_PHASE_{phase.name}") for phase in DownloadPhase}


def spec_from_pb(spec: downloads_pb2.DownloadSpec) -> DownloadSpec:
    """What to fetch. Raises InvalidRequestError for what has no counterpart in the core, which checks the rest."""
    return DownloadSpec(
        items=tuple(_item_from_pb(item, f"items[{index}]") for index, item in enumerate(spec.items)),
        name=spec.name,
        model_type=type_from_pb(spec.type),
        model_id=spec.model_id,
    )


def _item_from_pb(item: downloads_pb2.DownloadItem, where: str) -> Item:
    if item.component not in _COMPONENTS_BACK:
        raise InvalidRequestError(f"component {item.component} is not known", field=f"{where}.component")
    return Item(_source_from_pb(item, where), _COMPONENTS_BACK[item.component], item.checksum)


def _source_from_pb(item: downloads_pb2.DownloadItem, where: str) -> HubFile | str:
    match item.WhichOneof("source"):
        case "huggingface":
            hub = item.huggingface
            return HubFile(hub.repo, hub.file, hub.revision) if hub.revision else HubFile(hub.repo, hub.file)
        case "url":
            return item.url
        case None:
            raise InvalidRequestError("an item needs a source: a file on the hub, or a url", field=f"{where}.source")


def download_to_pb(download: Download, model: Model | None) -> downloads_pb2.Download:
    """A download for callers; `model` is what it installed, while that is there."""
    failure = download.failure
    return downloads_pb2.Download(
        id=download.id,
        spec=_spec_to_pb(download.spec),
        phase=_PHASES[download.phase],
        create_time=time_to_pb(download.created_at),
        update_time=time_to_pb(download.updated_at),
        bytes_done=download.bytes_done,
        bytes_total=download.bytes_total,
        bytes_per_second=download.bytes_per_second,
        remaining=None if download.remaining is None else duration_to_pb(download.remaining),
        files=[_progress_to_pb(file) for file in download.files],
        error=downloads_pb2.DownloadError(code=failure.code, message=failure.message, facts=failure.facts)
        if failure
        else None,
        model=model_to_pb(model) if model else None,
        retries=download.retries,
        problem=download.problem,
    )


def _spec_to_pb(spec: DownloadSpec) -> downloads_pb2.DownloadSpec:
    return downloads_pb2.DownloadSpec(
        items=[_item_to_pb(item) for item in spec.items],
        name=spec.name,
        type=TYPES[spec.model_type] if spec.model_type else models_pb2.MODEL_TYPE_UNSPECIFIED,
        model_id=spec.model_id,
    )


def _item_to_pb(item: Item) -> downloads_pb2.DownloadItem:
    message = downloads_pb2.DownloadItem(component=COMPONENTS[item.component], checksum=item.checksum)
    if isinstance(item.source, str):
        message.url = item.source
    else:
        hub = downloads_pb2.HuggingFaceSource(
            repo=item.source.repo, file=item.source.file, revision=item.source.revision
        )
        message.huggingface.CopyFrom(hub)
    return message


def _progress_to_pb(file: FileProgress) -> downloads_pb2.FileProgress:
    return downloads_pb2.FileProgress(
        name=file.name,
        component=COMPONENTS[file.component],
        bytes_done=file.bytes_done,
        bytes_total=file.bytes_total,
    )
