"""The contracts keep their promises: to clients that exist, to readers, and to the house's rules."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from contract.schema import baseline, breakages, comments, own_files, present
from genaid_client.types import Sampler


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorSet:
    return present(tmp_path_factory.mktemp("schema"))


def test_the_present_contracts_break_nothing(schema: FileDescriptorSet) -> None:
    assert own_files(baseline())
    assert breakages(baseline(), schema) == []


def file(schema: FileDescriptorSet, name: str) -> FileDescriptorProto:
    return next(each for each in schema.file if each.name == f"genaid/{name}.proto")


def message(schema: FileDescriptorSet, name: str) -> DescriptorProto:
    return next(each for each in file(schema, "image/v1/generation").message_type if each.name == name)


def field(schema: FileDescriptorSet, owner: str, name: str) -> FieldDescriptorProto:
    return next(each for each in message(schema, owner).field if each.name == name)


def enum(schema: FileDescriptorSet, name: str) -> EnumDescriptorProto:
    return next(each for each in file(schema, "image/v1/generation").enum_type if each.name == name)


def service(schema: FileDescriptorSet) -> ServiceDescriptorProto:
    return file(schema, "image/v1/generation").service[0]


def remove_file(schema: FileDescriptorSet) -> None:
    schema.file.remove(file(schema, "resource/v1/models"))


def move_package(schema: FileDescriptorSet) -> None:
    file(schema, "image/v1/engine").package = "genaid.image.v2"


def remove_message(schema: FileDescriptorSet) -> None:
    file(schema, "image/v1/generation").message_type.remove(message(schema, "Progress"))


def remove_field(schema: FileDescriptorSet) -> None:
    message(schema, "Generation").field.remove(field(schema, "Generation", "model_id"))


def rename_field(schema: FileDescriptorSet) -> None:
    field(schema, "Generation", "model_id").name = "model"


def rename_field_in_json(schema: FileDescriptorSet) -> None:
    field(schema, "Generation", "model_id").json_name = "model"


def renumber_field(schema: FileDescriptorSet) -> None:
    field(schema, "Generation", "model_id").number = 99


def change_scalar_type(schema: FileDescriptorSet) -> None:
    field(schema, "GenerationSpec", "steps").type = FieldDescriptorProto.TYPE_INT64


def change_message_type(schema: FileDescriptorSet) -> None:
    field(schema, "Generation", "progress").type_name = ".genaid.image.v1.ImageInfo"


def make_singular(schema: FileDescriptorSet) -> None:
    field(schema, "Generation", "images").label = FieldDescriptorProto.LABEL_OPTIONAL


def drop_presence(schema: FileDescriptorSet) -> None:
    field(schema, "GenerationSpec", "seed").ClearField("proto3_optional")


def leave_oneof(schema: FileDescriptorSet) -> None:
    field(schema, "GenerateImagesResponse", "chunk").ClearField("oneof_index")


def remove_enum(schema: FileDescriptorSet) -> None:
    file(schema, "image/v1/generation").enum_type.remove(enum(schema, "Stage"))


def remove_enum_value(schema: FileDescriptorSet) -> None:
    del enum(schema, "Sampler").value[-1]


def rename_enum_value(schema: FileDescriptorSet) -> None:
    enum(schema, "Sampler").value[-1].name = "SAMPLER_OTHER"


def renumber_enum_value(schema: FileDescriptorSet) -> None:
    enum(schema, "Sampler").value[-1].number = 99


def remove_service(schema: FileDescriptorSet) -> None:
    del file(schema, "image/v1/generation").service[:]


def remove_rpc(schema: FileDescriptorSet) -> None:
    del service(schema).method[0]


def change_request(schema: FileDescriptorSet) -> None:
    service(schema).method[0].input_type = ".genaid.image.v1.GetGenerationRequest"


def change_response(schema: FileDescriptorSet) -> None:
    service(schema).method[0].output_type = ".genaid.image.v1.GetGenerationResponse"


def stream_responses(schema: FileDescriptorSet) -> None:
    service(schema).method[0].server_streaming = True


def stream_requests(schema: FileDescriptorSet) -> None:
    service(schema).method[0].client_streaming = True


GENERATION = "field genaid.image.v1.Generation"
CREATE = "rpc genaid.image.v1.GenerationService.CreateGeneration"
LAST_SAMPLER = "value genaid.image.v1.Sampler 21"


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (remove_file, "file genaid/resource/v1/models.proto"),
        (move_package, "file genaid/image/v1/engine.proto"),
        (remove_message, "message genaid.image.v1.Progress"),
        (remove_field, f"{GENERATION} 11"),
        (rename_field, f"{GENERATION} 11"),
        (rename_field_in_json, f"{GENERATION} 11"),
        (renumber_field, f"{GENERATION} 11"),
        (change_scalar_type, "field genaid.image.v1.GenerationSpec 5"),
        (change_message_type, f"{GENERATION} 7"),
        (make_singular, f"{GENERATION} 8"),
        (drop_presence, "field genaid.image.v1.GenerationSpec 7"),
        (leave_oneof, "field genaid.image.v1.GenerateImagesResponse 2"),
        (remove_enum, "enum genaid.image.v1.Stage"),
        (remove_enum_value, LAST_SAMPLER),
        (rename_enum_value, LAST_SAMPLER),
        (renumber_enum_value, LAST_SAMPLER),
        (remove_service, "service genaid.image.v1.GenerationService"),
        (remove_rpc, CREATE),
        (change_request, CREATE),
        (change_response, CREATE),
        (stream_responses, CREATE),
        (stream_requests, CREATE),
    ],
)
def test_a_breaking_change_is_found(change: Callable[[FileDescriptorSet], None], broken: str) -> None:
    changed = FileDescriptorSet()
    changed.CopyFrom(baseline())
    change(changed)
    assert broken in breakages(baseline(), changed)


def test_an_addition_breaks_nothing() -> None:
    grown = FileDescriptorSet()
    grown.CopyFrom(baseline())
    grown.file.add(name="genaid/image/v1/more.proto", package="genaid.image.v1")
    message(grown, "Generation").field.add(name="more", number=99)
    enum(grown, "Sampler").value.add(name="SAMPLER_MORE", number=99)
    service(grown).method.add(name="More", input_type=".genaid.image.v1.More", output_type=".genaid.image.v1.More")
    assert breakages(baseline(), grown) == []
    assert len(breakages(grown, baseline())) == 4


def test_everything_has_a_comment(schema: FileDescriptorSet) -> None:
    said = {name: comment for each in own_files(schema) for name, comment in comments(each).items()}
    assert "genaid.image.v1.Generation.id" in said
    assert [name for name, comment in said.items() if not comment] == []


def test_a_missing_comment_is_found(schema: FileDescriptorSet) -> None:
    changed = FileDescriptorSet()
    changed.CopyFrom(schema)
    bare = file(changed, "image/v1/generation")
    message(changed, "Generation").field.add(name="more", number=99)
    enum(changed, "Sampler").value.add(name="SAMPLER_MORE", number=99)
    service(changed).method.add(name="More")
    assert {name for name, comment in comments(bare).items() if not comment} == {
        "genaid.image.v1.Generation.more",
        "genaid.image.v1.Sampler.SAMPLER_MORE",
        "genaid.image.v1.GenerationService.More",
    }


def enums(schema: FileDescriptorSet) -> Iterator[EnumDescriptorProto]:
    def within(owner: DescriptorProto) -> Iterator[EnumDescriptorProto]:
        yield from owner.enum_type
        for nested in owner.nested_type:
            yield from within(nested)

    for each in own_files(schema):
        yield from each.enum_type
        for owner in each.message_type:
            yield from within(owner)


def test_zero_of_each_enum_says_nothing(schema: FileDescriptorSet) -> None:
    zeros = [(each.name, value.name) for each in enums(schema) for value in each.value if value.number == 0]
    assert len(zeros) == len(list(enums(schema))) > 0
    for name, zero in zeros:
        assert zero == re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper() + "_UNSPECIFIED"


def test_each_rpc_has_its_own_request_and_response(schema: FileDescriptorSet) -> None:
    methods = [(each.package, method) for each in own_files(schema) for s in each.service for method in s.method]
    assert methods
    for package, method in methods:
        assert method.input_type == f".{package}.{method.name}Request"
        assert method.output_type == f".{package}.{method.name}Response"
    types = [name for _, method in methods for name in (method.input_type, method.output_type)]
    assert len(types) == len(set(types))


COMMON = "genaid.common.v1"
"""What all services say the same way; it has no service of its own."""


def test_each_file_has_one_service_and_lies_in_its_package(schema: FileDescriptorSet) -> None:
    for each in own_files(schema):
        assert str(Path(each.name).parent.as_posix()).replace("/", ".") == each.package
        assert [s.name.endswith("Service") for s in each.service] == ([] if each.package == COMMON else [True])


def test_what_both_services_say_alike_is_said_once(schema: FileDescriptorSet) -> None:
    of_services = [each for each in own_files(schema) if each.package != COMMON]
    names = Counter(enum.name for each in of_services for enum in each.enum_type)
    names.update(message.name for each in of_services for message in each.message_type)
    logs = {f"{rpc}Logs{kind}" for rpc in ("List", "Tail", "Clear") for kind in ("Request", "Response")}
    assert {name for name, times in names.items() if times > 1} == logs  # each RPC has messages of its own


def test_the_newest_revision_of_the_contracts_is_the_last_of_them(schema: FileDescriptorSet) -> None:
    revisions = next(each for each in enums(schema) if each.name == "ContractRevision")
    assert [value.name for value in revisions.value[1:]] == [
        f"CONTRACT_REVISION_R{number}" for number in range(1, len(revisions.value))
    ]
    assert [value.number for value in revisions.value] == list(range(len(revisions.value)))


def test_the_samplers_names_are_those_of_the_contract(schema: FileDescriptorSet) -> None:
    said = comments(file(schema, "image/v1/generation"))
    names: dict[str, str] = {}
    for value in enum(schema, "Sampler").value[1:]:
        quoted = re.search(r"`([^`]+)`", said[f"genaid.image.v1.Sampler.{value.name}"])
        assert quoted is not None
        names[value.name.removeprefix("SAMPLER_")] = quoted[1]
    assert names == {sampler.name: sampler.value for sampler in Sampler}
