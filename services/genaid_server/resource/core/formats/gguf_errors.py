"""The refusals of files that are no GGUF, or damaged: what is wrong with them, and what to do about it."""

from typing import Final

from genaid_server.kit.errors import InvalidRequestError


def refusal(message: str) -> InvalidRequestError:
    """The error for a file that is no model, or none that can be read."""
    return InvalidRequestError(message, field="file")


def damaged(what: str) -> InvalidRequestError:
    """The error for a header that contradicts itself or the format."""
    return refusal(f"The file's GGUF header is damaged: {what}. Fetch the file again, or another build of the model.")


def too_large(what: str) -> InvalidRequestError:
    """The error for a header that is larger than any that is needed."""
    return refusal(f"The file's GGUF header {what}, more than any model needs. Use another build of the model.")


def truncated(what: str) -> InvalidRequestError:
    """The error for a file that ends too early."""
    return refusal(f"The GGUF file is truncated: {what}. Fetch it again; its download or copy wasn't finished.")


def shown(name: str) -> str:
    """A name out of the file, made safe and short enough for a message."""
    return ascii(name if len(name) <= 80 else f"{name[:77]}...")


# What people offer in place of a GGUF file, by how it begins.
_OTHER_FORMATS: Final = (
    (b"PK\x03\x04", "a zip archive or PyTorch checkpoint, whose pickled contents could run code"),
    (b"\x80\x02", "a pickled PyTorch checkpoint, which could run code"),
    (b"lmgg", "a model in llama.cpp's first format, GGML"),
    (b"tjgg", "a model in llama.cpp's old format, GGJT"),
    (b"version https://git-lfs", "a Git LFS pointer, which stands for the model without containing it"),
    (b"<", "a web page"),
    (b"{", "a JSON text, such as an error that a server sent"),
)


def not_gguf(beginning: bytes) -> InvalidRequestError:
    """The error for a file of another format, told by its beginning."""
    if beginning[8:9] == b"{":
        return refusal("The file is not GGUF, but looks like safetensors. Give it the suffix .safetensors.")
    for start, what in _OTHER_FORMATS:
        if beginning.startswith(start):
            return refusal(f"The file is not GGUF, but looks like {what}. Fetch the model as a .gguf file.")
    return refusal("The file is not GGUF: it doesn't begin with the letters GGUF. Fetch the model as a .gguf file.")
