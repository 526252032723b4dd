"""The contracts suit the languages that programs are written in: options, and names that mean nothing else there."""

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from contract.schema import own_files, present

# What these languages know without an import, or by the imports that their compilers add by themselves.
TAKEN = {
    "Java": """
        AbstractMethodError Appendable ArithmeticException ArrayIndexOutOfBoundsException ArrayStoreException
        AssertionError AutoCloseable Boolean BootstrapMethodError Byte CharSequence Character Class
        ClassCastException ClassLoader ClassNotFoundException ClassValue Cloneable Comparable Compiler Deprecated
        Double Enum Error Exception Float FunctionalInterface IO IllegalArgumentException IllegalStateException
        InheritableThreadLocal Integer InterruptedException Iterable LinkageError Long MatchException Math Module
        ModuleLayer Number Object Override Package Process ProcessBuilder ProcessHandle Readable Record Runnable
        Runtime RuntimeException RuntimePermission SafeVarargs ScopedValue SecurityException SecurityManager Short
        StableValue StackTraceElement StackWalker StrictMath String StringBuffer StringBuilder StringTemplate
        SuppressWarnings System Thread ThreadGroup ThreadLocal Throwable VerifyError VirtualMachineError Void
    """,
    "Kotlin": """
        Annotation Any Array BooleanArray ByteArray Char CharArray Collection Comparator ContextFunctionTypeParams
        DeepRecursiveFunction DeprecationLevel DoubleArray Experimental Function Int IntArray Iterator Lazy
        LazyThreadSafetyMode List ListIterator LongArray Map MutableList MutableMap MutableSet Nothing Pair
        PublishedApi Random Regex ReplaceWith Result Sequence Set ShortArray Suppress Triple UByte UInt ULong
        UShort Unit
    """,
    "C#": """
        Action Activator AggregateException AppContext AppDomain ArgIterator ArgumentException Attribute
        BadImageFormatException Barrier BinaryReader BinaryWriter BitConverter Buffer CancellationToken Console
        Convert CountdownEvent DBNull DateOnly DateTime DateTimeOffset DayOfWeek Decimal Delegate Dictionary
        Directory DirectoryInfo DriveInfo Environment EventArgs EventHandler ExecutionContext File FileAttributes
        FileInfo FileMode FileStream Func GC Guid Half HashCode HashSet HttpClient HttpContent HttpMethod
        IDisposable Index IntPtr Interlocked Lock LinkedList MemoryStream Monitor Mutex Nullable OperatingSystem
        Overlapped Parallel Path Queue Range Semaphore SortedList Stack Stream StreamReader StreamWriter Task
        TaskScheduler TextReader TextWriter ThreadPool ThreadState TimeOnly TimeSpan TimeZone TimeZoneInfo Timeout
        Timer Tuple Type Uri UriBuilder Version Volatile WeakReference
    """,
    "PHP": """
        Abstract And As Bool Break Callable Case Catch Clone Closure Const Continue Declare Default Directory Do
        Echo Else Empty Enum Eval Exit Extends False Final Finally Fn For Foreach Function Generator Global Goto If
        Implements Include Instanceof Insteadof Interface Isset List Match Mixed Namespace Never New Null Numeric
        Or Parent Print Private Protected Public Readonly Require Resource Return Self Static Switch Throw Trait
        Traversable True Try Unset Use Var While Xor Yield
    """,
    "Ruby": "BasicObject Binding Data Dir Encoding Fiber Hash Kernel Marshal Method Proc Rational Signal Struct Symbol",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    return own_files(present(tmp_path_factory.mktemp("schema")))


def names(file: FileDescriptorProto) -> Iterator[str]:
    """Of all types and services, and of the class that Java has for the whole file."""

    def within(message: DescriptorProto) -> Iterator[str]:
        yield message.name
        yield from (enum.name for enum in message.enum_type)
        for nested in message.nested_type:
            if not nested.options.map_entry:
                yield from within(nested)

    yield file.options.java_outer_classname
    yield from (enum.name for enum in file.enum_type)
    yield from (service.name for service in file.service)
    for message in file.message_type:
        yield from within(message)


def clashes(file: FileDescriptorProto) -> list[str]:
    """The names of a file that mean something else in a language."""
    return [
        f"{name} is taken in {language}"
        for name in names(file)
        for language, taken in TAKEN.items()
        if name in taken.split()
    ]


def test_each_file_says_where_its_code_belongs(files: list[FileDescriptorProto]) -> None:
    assert len(files) > 8
    for file in files:
        genaid, room, version = file.package.split(".")
        assert (genaid, version) == ("genaid", "v1")
        of, options = room.capitalize(), file.options
        assert options.go_package == f"genaid/{room}/v1;{room}v1"
        assert options.java_package == file.package
        assert options.java_multiple_files
        assert options.csharp_namespace == options.php_namespace.replace("\\", ".") == f"Genaid.{of}.V1"
        assert options.php_metadata_namespace == f"Genaid\\{of}\\V1\\Metadata"
        assert options.ruby_package == f"Genaid::{of}::V1"
        assert options.objc_class_prefix == options.swift_prefix == f"Genaid{of}"


def test_javas_class_of_a_file_is_nobody_elses(files: list[FileDescriptorProto]) -> None:
    every = [(file.package, name) for file in files for name in names(file)]
    outer = [(file.package, file.options.java_outer_classname) for file in files]
    assert all(name for _, name in outer)
    assert [each for each in outer if every.count(each) != 1] == []


def test_c_sharp_can_write_all_files_into_one_folder(files: list[FileDescriptorProto]) -> None:
    stems = [file.name.rpartition("/")[2].replace("_", "") for file in files]
    assert len(set(stems)) == len(stems)


def test_no_name_means_something_else_in_a_language(files: list[FileDescriptorProto]) -> None:
    assert [clash for file in files for clash in clashes(file)] == []


@pytest.mark.parametrize("name", ["System", "Runtime", "Task", "Path", "List", "Result"])
def test_a_name_that_means_something_else_is_found(name: str) -> None:
    assert clashes(FileDescriptorProto(message_type=[DescriptorProto(name=name)]))
    nested = DescriptorProto(name="Fine", nested_type=[DescriptorProto(name=name)])
    assert clashes(FileDescriptorProto(message_type=[nested]))
    file = FileDescriptorProto()
    file.options.java_outer_classname = name
    assert clashes(file)


def test_no_field_has_the_name_of_its_message(files: list[FileDescriptorProto]) -> None:
    """C# has to rename such a property."""

    def renamed(message: DescriptorProto) -> Iterator[str]:
        yield from (
            f"{message.name}.{field.name}"
            for field in message.field
            if field.name.replace("_", "") == message.name.lower()
        )
        for nested in message.nested_type:
            yield from renamed(nested)

    assert [name for file in files for message in file.message_type for name in renamed(message)] == []
