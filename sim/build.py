"""Build native code once and keep it: the cache behind every compiled part of the simulator.

An entry is one file, named by a digest of everything that decides its contents (sources, headers,
flags, compiler, build recipe). It appears in the cache in one step, so a reader sees all of it or
none, and a file lock makes parallel processes build it once: the others wait, then share it.
Beside it lies the digest of its bytes: what a full disk or a broken copy left is built anew.
Nothing in the cache is ever changed; deleting the folder is always safe and costs only time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from sat.sim.threads import check_stop

# The C++ of this project is written to this standard; GNU because of the vector extensions.
CXX_STANDARD = "-std=gnu++17"

# What a shared library of ours is compiled with:
# * GCC marks statics of inline functions "unique", one per *process*, and two libraries that each
#   hold another class of the same name would then share them: switched off;
# * calls inside the library go straight to its own functions, so they can be inlined.
SHARED_FLAGS = ("-fPIC", "-fno-gnu-unique", "-fno-semantic-interposition", "-pthread")
SHARED_LINK_FLAGS = ("-shared", "-Wl,-Bsymbolic", "-pthread")

_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)
_NATIVE_FLAG = re.compile(r"-m(arch|tune|cpu)=native")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# A C++ error can run to megabytes; its cause is at the start.
_MESSAGE_LIMIT = 8000
# How often a running tool and a waiting process look whether they are to stop.
_LOOK_SECONDS = 0.1


class BuildError(RuntimeError):
    """Native code could not be built: a tool is missing, or it reported an error."""


def cache_dir() -> Path:
    """Return the folder of the build cache, made if it does not exist.

    Returns
    -------
    Path
        ``$SAT_CACHE`` if set and not empty, else ``sat`` under ``$XDG_CACHE_HOME`` or
        ``~/.cache``; absolute.

    Raises
    ------
    BuildError
        If the folder cannot be made, or there is no home to make it in.
    """
    chosen = os.environ.get("SAT_CACHE")
    try:
        if chosen:
            folder = Path(chosen).expanduser()
        else:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sat"
    except RuntimeError as error:
        raise BuildError(
            f"the build cache has no place, since this user has no home folder ({error}): "
            "set SAT_CACHE to a folder that can be written"
        ) from error
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return folder.resolve()


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say of what goes wrong with files of the cache where it is, and how to have another."""
    try:
        yield
    except OSError as error:
        raise BuildError(
            f"the build cache {folder} cannot be made or written ({error.strerror}): "
            "set SAT_CACHE to a folder that can be written"
        ) from error


def compiler() -> str:
    """Return the path of the C++ compiler: ``$CXX`` if set and not empty, else ``g++``.

    Raises
    ------
    BuildError
        If there is no such program.
    """
    name = os.environ.get("CXX") or "g++"
    path = shutil.which(name)
    if path is None:
        raise BuildError(
            f"the C++ compiler {name!r} is not installed: run `make setup`, install the package "
            "`g++`, or set CXX to a compiler"
        )
    return path


@functools.lru_cache
def _compiler_identity(path: str) -> str:
    try:
        known = "__GNUC__" in run_tool([path, "-E", "-dM", "-x", "c++", os.devnull])
        reason = "it does not say that it is GCC or Clang"
    except BuildError as error:
        known, reason = False, str(error).splitlines()[0]
    if not known:
        raise BuildError(
            f"{path} does not work as a C++ compiler ({reason}): set CXX to one, or unset it for "
            "g++"
        )
    return run_tool([path, "--version"])


@functools.lru_cache
def _native_target(path: str) -> str:
    # What -march=native stands for on this CPU, in the compiler's own words: a cache on a shared
    # disk then never hands one machine's instructions to another.
    return run_tool([path, "-march=native", "-E", "-dM", "-x", "c++", os.devnull])


def compiler_identity(flags: Iterable[str] = ()) -> str:
    """Return the text that tells compilers apart: version, and the CPU where flags say native.

    Parameters
    ----------
    flags : iterable of str
        Flags of the compilation.

    Raises
    ------
    BuildError
        If the compiler is missing or does not run.
    """
    path = compiler()
    identity = _compiler_identity(path)
    if any(_NATIVE_FLAG.search(flag) for flag in flags):
        identity += _native_target(path)
    return identity


def run_tool(
    command: Sequence[str | os.PathLike[str]],
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a tool of the build to its end and return what it wrote to its standard output.

    Parameters
    ----------
    command : sequence of str or path
        Program and arguments.
    cwd : Path, optional
        Folder to run in.
    environment : mapping of str to str, optional
        Variables to set for the program, besides those of this process.

    Raises
    ------
    BuildError
        If the program does not start or ends with an error; the message holds what it wrote.
    """
    words = [os.fspath(word) for word in command]
    try:
        process = subprocess.Popen(
            words,
            cwd=cwd,
            # Messages in one language, whatever the user's.
            env=os.environ | {"LC_ALL": "C"} | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # A compiler is a family of processes: a group of their own, to be ended together.
            process_group=0,
        )
    except OSError as error:
        raise BuildError(f"{words[0]} does not start: {error.strerror}") from error
    with process:
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    output, errors = process.communicate(timeout=_LOOK_SECONDS)
                    break
                check_stop()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode != 0:
        said = (errors.strip() or output.strip()) or "it wrote no message"
        if len(said) > _MESSAGE_LIMIT:
            said = f"{said[:_MESSAGE_LIMIT]}\n[{len(said) - _MESSAGE_LIMIT} more characters]"
        raise BuildError(
            f"{Path(words[0]).name} failed with status {process.returncode}:\n{said}\n"
            f"command: {' '.join(words)}"
        )
    return output


def source_texts(
    sources: Iterable[Path], include_dirs: Iterable[Path] = ()
) -> list[tuple[str, bytes]]:
    """Return name and contents of sources and of each file they include in quotes, recursively.

    Parameters
    ----------
    sources : iterable of Path
        C++ files.
    include_dirs : iterable of Path
        Folders searched after the including file's own. A quoted name found in none of them
        belongs to a tool, whose version must be in the digest, and is passed over.

    Raises
    ------
    BuildError
        If a source does not exist.
    """
    folders = [Path(folder) for folder in include_dirs]
    texts: dict[Path, bytes] = {}
    waiting = [Path(source).resolve() for source in sources]
    while waiting:
        path = waiting.pop(0)
        if path in texts:
            continue
        try:
            texts[path] = path.read_bytes()
        except OSError as error:
            raise BuildError(f"source {path} cannot be read: {error.strerror}") from error
        for name in _INCLUDE.findall(texts[path]):
            for folder in (path.parent, *folders):
                candidate = folder / os.fsdecode(name)
                if candidate.is_file():
                    waiting.append(candidate.resolve())
                    break
    return [(path.name, text) for path, text in texts.items()]


def digest(parts: Iterable[str | bytes]) -> str:
    """Return 32 hexadecimal digits of the SHA-256 of a sequence of texts.

    Lengths are part of it: moving a character from one text to the next changes the digest.
    """
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()[:32]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The lock file stays: removing it would let a third process lock a new file of the same name
    # while the second still holds the old one.
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            time.sleep(_LOOK_SECONDS)
            check_stop()
        try:
            yield
        finally:
            # A process forked meanwhile has the file open, too: closing it would not do.
            fcntl.flock(lock, fcntl.LOCK_UN)


def cached(name: str, key: str, suffix: str, build: Callable[[Path], Path]) -> Path:
    """Return the cache's file of this name and key, building it first if it is not there.

    Parameters
    ----------
    name : str
        Readable first part of the file's name: letters, digits, ``_``, ``.`` and ``-``.
    key : str
        Digest of everything that decides the contents (`digest`).
    suffix : str
        Last part of the file's name, for instance ``".so"``.
    build : callable
        Called, at most once over all processes, with an empty folder; returns the file it made in
        there. The folder is removed afterwards, also when the build fails.

    Returns
    -------
    Path
        Absolute path of a complete file.

    Raises
    ------
    ValueError
        If the name has other characters.
    BuildError
        What ``build`` raises.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name={name!r}: must be letters, digits, '_', '.' and '-', starting with a letter "
            "or a digit; choose such a name"
        )
    folder = cache_dir()
    entry = folder / f"{name}-{key}{suffix}"
    if _intact(entry):
        return entry
    with _writing(folder), _locked(folder / "locks" / f"{name}-{key}"):
        if _intact(entry):
            return entry
        building = folder / "building"
        building.mkdir(exist_ok=True)
        # Only the holder of the lock builds this: what lies there is of a killed build. A compiler
        # may have outlived it and still write there, so this one has a folder of another name.
        for left in building.glob(f"{name}-{key}*"):
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f"{name}-{key}.", dir=building))
        try:
            made = build(work)
            if not made.is_file() or made.stat().st_size == 0:
                raise BuildError(
                    f"the tools that build {name} ended well but made nothing: set CXX to a C++ "
                    "compiler, or unset it for g++"
                )
            # The digest first: an entry that is there has one.
            beside = work / "digest"
            beside.write_text(_digest_of(made))
            os.replace(beside, _beside(entry))
            os.replace(made, entry)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return entry


def _beside(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.sha256")


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Files that this process has found whole: by path, with what changes when they are written.
_seen_intact: dict[Path, tuple[int, int, int]] = {}


def _intact(entry: Path) -> bool:
    """Return whether an entry is there with the bytes that were built."""
    try:
        found = entry.stat()
        identity = (found.st_ino, found.st_size, found.st_mtime_ns)
        if _seen_intact.get(entry) == identity:
            return True
        if _digest_of(entry) != _beside(entry).read_text():
            return False
    except OSError:
        return False
    _seen_intact[entry] = identity
    return True


def compile_library(
    name: str,
    sources: Sequence[Path],
    flags: Sequence[str] = ("-O3", "-march=native"),
    *,
    include_dirs: Sequence[Path] = (),
    libraries: Sequence[str] = (),
) -> Path:
    """Compile C++ sources into a shared library and return its path.

    A library is built once for each distinct content of the sources, of the files they include
    in quotes, flags, libraries, compiler, and CPU where a flag says native.

    Parameters
    ----------
    name : str
        First part of the library's file name.
    sources : sequence of Path
        C++ files; functions to be called through `ctypes` are declared ``extern "C"``.
    flags : sequence of str
        Compiler flags, added to `CXX_STANDARD` and `SHARED_FLAGS`.
    include_dirs : sequence of Path
        Folders of headers.
    libraries : sequence of str
        Libraries to link, without ``-l``.

    Returns
    -------
    Path
        The shared library.

    Raises
    ------
    ValueError
        If there is no source or the name has other characters than a file name should.
    BuildError
        If the compiler is missing or reports an error (the message holds its text).
    """
    if not sources:
        raise ValueError(f"library {name!r} has no sources: give at least one C++ file")
    texts = source_texts(sources, include_dirs)
    recipe = Path(__file__).read_bytes()
    key = digest(
        [
            recipe,
            compiler_identity(flags),
            *(f"flag {flag}" for flag in flags),
            *(f"library {library}" for library in libraries),
            *(part for text in texts for part in text),
        ]
    )

    def build(folder: Path) -> Path:
        made = folder / "library.so"
        run_tool(
            [
                compiler(),
                CXX_STANDARD,
                *SHARED_FLAGS,
                *flags,
                *(f"-I{Path(include).resolve()}" for include in include_dirs),
                *(Path(source).resolve() for source in sources),
                *SHARED_LINK_FLAGS,
                "-o",
                made,
                *(f"-l{library}" for library in libraries),
            ]
        )
        return made

    return cached(name, key, ".so", build)
