"""The contracts as descriptor sets: compiled now, committed as the baseline, and compared."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc  # type: ignore[import-untyped]

PROTOS = Path(__file__).resolve().parents[2] / "protos"

type Facts = dict[str, object]


def present(folder: Path) -> FileDescriptorSet:
    """The contracts as they are, comments included; `folder` takes the compiler's output."""
    output = folder / "present.binpb"
    flags = [f"--proto_path={PROTOS}", f"--proto_path={files('grpc_tools') / '_proto'}", "--include_source_info"]
    sources = sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))
    assert protoc.main(["protoc", *flags, f"--descriptor_set_out={output}", *sources]) == 0
    return FileDescriptorSet.FromString(output.read_bytes())


def baseline() -> FileDescriptorSet:
    """The contracts that must not be broken."""
    return FileDescriptorSet.FromString((PROTOS / "baseline.binpb").read_bytes())


def breakages(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """What a program built against `old` would miss or find changed in `new`; additions break nothing."""
    facts, now = _facts(old), _facts(new)
    return sorted(name for name, fact in facts.items() if name not in now or now[name] != fact)


def own_files(schema: FileDescriptorSet) -> list[FileDescriptorProto]:
    """The files that are genaid's, without what they import."""
    return [file for file in schema.file if file.package.startswith("genaid.")]


def _facts(schema: FileDescriptorSet) -> Facts:
    facts: Facts = {}
    for file in own_files(schema):
        facts[f"file {file.name}"] = (file.package, file.syntax)
        for message in file.message_type:
            facts |= _message_facts(message, file.package)
        for enum in file.enum_type:
            facts |= _enum_facts(enum, file.package)
        for service in file.service:
            facts |= _service_facts(service, file.package)
    return facts


def _message_facts(message: DescriptorProto, scope: str) -> Facts:
    name = f"{scope}.{message.name}"
    facts: Facts = {f"message {name}": None}
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
        facts[f"field {name} {field.number}"] = (
            field.name,
            field.json_name,
            field.type,
            field.type_name,
            field.label,
            field.proto3_optional,
            oneof,
        )
    for nested in message.nested_type:
        facts |= _message_facts(nested, name)
    for enum in message.enum_type:
        facts |= _enum_facts(enum, name)
    return facts


def _enum_facts(enum: EnumDescriptorProto, scope: str) -> Facts:
    name = f"{scope}.{enum.name}"
    return {f"enum {name}": None} | {f"value {name} {value.number}": value.name for value in enum.value}


def _service_facts(service: ServiceDescriptorProto, scope: str) -> Facts:
    name = f"{scope}.{service.name}"
    return {f"service {name}": None} | {
        f"rpc {name}.{method.name}": (
            method.input_type,
            method.output_type,
            method.client_streaming,
            method.server_streaming,
        )
        for method in service.method
    }


def comments(file: FileDescriptorProto) -> dict[str, str]:
    """The comment above each element of a file, by the element's full name; empty where there is none."""
    above = {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}
    return {name: above.get(path, "") for name, path in _elements(file)}


type Place = tuple[int, ...]


def _elements(file: FileDescriptorProto) -> Iterator[tuple[str, Place]]:
    for at, message in enumerate(file.message_type):
        yield from _message_elements(message, file.package, (4, at))
    for at, enum in enumerate(file.enum_type):
        yield from _enum_elements(enum, file.package, (5, at))
    for at, service in enumerate(file.service):
        name = f"{file.package}.{service.name}"
        yield name, (6, at)
        yield from ((f"{name}.{method.name}", (6, at, 2, index)) for index, method in enumerate(service.method))


def _message_elements(message: DescriptorProto, scope: str, path: Place) -> Iterator[tuple[str, Place]]:
    name = f"{scope}.{message.name}"
    yield name, path
    for at, field in enumerate(message.field):
        yield f"{name}.{field.name}", (*path, 2, at)
    for at, oneof in enumerate(message.oneof_decl):
        # protoc makes a oneof of its own for each optional field; nobody wrote it, so nobody comments it
        if not any(field.proto3_optional and field.oneof_index == at for field in message.field):
            yield f"{name}.{oneof.name}", (*path, 8, at)
    for at, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:  # so does it for each map
            yield from _message_elements(nested, name, (*path, 3, at))
    for at, enum in enumerate(message.enum_type):
        yield from _enum_elements(enum, name, (*path, 4, at))


def _enum_elements(enum: EnumDescriptorProto, scope: str, path: Place) -> Iterator[tuple[str, Place]]:
    name = f"{scope}.{enum.name}"
    yield name, path
    yield from ((f"{name}.{value.name}", (*path, 2, at)) for at, value in enumerate(enum.value))
