"""Libraries that are damaged, foreign or old; folders that are not private or cannot be used; compilers that misbehave."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from guides import errors
from guides.compile import cache, compilers
from guides.compile.native.build import NativeLoop

from .fits import fit, same, template
from .harness import NotHere, as_another_user, child, fault, full_after, has_command, small_disk

AGAIN = "deleted and made again, the right numbers, no word"


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.so"))


def filled(folder: Path) -> Path:
    """Fill the cache with the library of the fit, and return its path."""
    place = folder / "cache"
    place.mkdir(mode=0o700)
    (source,) = libraries(template()[0])
    return Path(shutil.copy2(source, place))


def refitted(library: Path) -> None:
    """Fit, and see that the library was made again."""
    before = library.lstat().st_ino
    same(fit())
    (found,) = libraries(library.parent)
    assert found.stat().st_ino != before, "the library was used"
    assert cache.find(found.name.split("-")[0], ".so") == found
    used = found.stat().st_ino
    same(fit())
    assert found.stat().st_ino == used, "the new library was not found"


def flip(place: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 0x10
        path.write_bytes(content)

    return damage


def cut(size: float) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(size * path.stat().st_size)])


def _sparse(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)
    os.truncate(path, 2 * path.stat().st_size)


def _replaced(path: Path, by: Callable[[Path], None]) -> None:
    path.unlink()
    by(path)


def _linked(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def _with_right_hash(path: Path) -> None:
    """Put nonsense under a name with its true hash, as a broken compiler would."""
    import hashlib

    content = b"\x7fELF nonsense"
    path.unlink()
    path.with_name(f"{path.name.split('-')[0]}-{hashlib.sha256(content).hexdigest()}.so").write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "of zero length": lambda path: path.write_bytes(b""),
    "cut to half": cut(0.5),
    "cut to its first page": lambda path: os.truncate(path, 4096),
    "short of its last byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "half of it zeros": _sparse,
    "of text": lambda path: path.write_bytes(b"not a library\n" * 100),
    "with a bit flipped at its start": flip(0.0),
    "with a bit flipped in its middle": flip(0.5),
    "with a bit flipped at its end": flip(1.0),
    "with bytes after its end": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "replaced by a folder": lambda path: _replaced(path, lambda p: (p / "inside").mkdir(parents=True)),
    "replaced by a link to a library elsewhere": _linked,
    "replaced by a link that leads nowhere": lambda path: _replaced(path, lambda p: p.symlink_to("nowhere")),
    "replaced by a pipe": lambda path: _replaced(path, os.mkfifo),
    "that anybody may write to": lambda path: path.chmod(0o777),
    "that its group may write to": lambda path: path.chmod(0o660),
    "of another user": lambda path: _given_away(path),
    "that nobody may read": lambda path: path.chmod(0o000),
    "with the right hash that the system cannot load": _with_right_hash,
}


def _given_away(path: Path) -> None:
    if os.geteuid() != 0:
        raise NotHere("only root can give files away")
    os.chown(path, 65534, 65534)


for _what, _damage in DAMAGES.items():

    @fault("compile cache", f"a library {_what}", AGAIN, _damage, quick=_what == "cut to half")
    def _damaged(folder: Path, damage: Callable[[Path], None]) -> None:
        path = filled(folder)
        damage(path)
        if "nobody may read" in str(damage) or (path.exists() and path.stat().st_mode & 0o777 == 0):
            as_another_user(folder)
        refitted(next(iter(libraries(path.parent)), path))


@fault("compile cache", "a whole library, as it was kept", "found and used, no compiler is run", quick=True)
def _whole(folder: Path) -> None:
    path = filled(folder)
    before = path.stat().st_ino
    NativeLoop._compile = None  # type: ignore[method-assign,assignment]
    same(fit())
    assert path.stat().st_ino == before


@fault("compile cache", "a library of an older version, without a hash", "deleted when the next one is kept")
def _old(folder: Path) -> None:
    place = folder / "cache"
    place.mkdir()
    (place / f"{'a' * 40}.so").write_bytes(b"old")
    same(fit())
    assert len(libraries(place)) == 1


@fault("compile cache", "more bytes of libraries than there is room for", "those used last stay, the others go")
def _bounded(folder: Path) -> None:
    place = folder / "cache"
    cache._MOST_BYTES = 10_000
    kept = []
    for number in range(6):
        kept.append(cache.keep(f"{number:040x}", ".so", os.urandom(4000)))
        os.utime(kept[-1], (number, number))
    assert [p.exists() for p in kept] == [False] * 4 + [True] * 2, os.listdir(place)


def _right(folder: Path, place: Path | None = None) -> None:
    """Fit in an empty current folder, and see that nothing is left there and that the library is in ``place``."""
    here = folder / "here"
    here.mkdir()
    os.chdir(here)
    same(fit())
    assert list(here.iterdir()) == [], list(here.iterdir())
    if place is not None:
        assert len(libraries(place)) == 1, f"nothing in {place}"
        assert place.stat().st_mode & 0o777 == 0o700


def _variables(folder: Path, **values: str | None) -> None:
    os.environ.pop("GUIDES_CACHE")
    os.environ["HOME"] = str(folder)
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


PLACES: dict[str, tuple[dict[str, str | None], str]] = {
    "XDG_CACHE_HOME is empty": ({"XDG_CACHE_HOME": ""}, ".cache/guides/compiled"),
    "XDG_CACHE_HOME is relative": ({"XDG_CACHE_HOME": "caches"}, ".cache/guides/compiled"),
    "XDG_CACHE_HOME is '.'": ({"XDG_CACHE_HOME": "."}, ".cache/guides/compiled"),
    "GUIDES_CACHE is relative": ({"GUIDES_CACHE": "mine", "XDG_CACHE_HOME": None}, ".cache/mine"),
    "GUIDES_CACHE is '.'": ({"GUIDES_CACHE": "./", "XDG_CACHE_HOME": None}, ".cache"),
    "GUIDES_CACHE is empty": ({"GUIDES_CACHE": "", "XDG_CACHE_HOME": None}, ".cache/guides/compiled"),
    "GUIDES_CACHE begins with ~": ({"GUIDES_CACHE": "~/mine"}, "mine"),
}
for _what, (_values, _place) in PLACES.items():

    @fault("compile cache", _what, "libraries in a private folder of the user, none in the current one", _values, _place)
    def _placed(folder: Path, values: dict[str, str | None], place: str) -> None:
        home = folder / "home"
        home.mkdir()
        _variables(home, **values)
        _right(folder, home / place)


TEMPORARY = "one warning, a temporary folder that goes with the process, the right numbers"


def _in_a_temporary_folder(folder: Path, said: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _right(folder)
        same(fit(steps=30))
    relevant = [w for w in caught if issubclass(w.category, errors.StorageWarning | errors.EagerFallbackWarning)]
    assert [w.category for w in relevant] == [errors.StorageWarning], [str(w.message) for w in relevant]
    assert said in str(relevant[0].message), relevant[0].message
    (place,) = cache._TEMPORARY.values()
    assert len(libraries(place)) == 1
    shutil.rmtree(place)


@fault("compile cache", "no HOME, and a user without a passwd entry", TEMPORARY, quick=True)
def _no_home(folder: Path) -> None:
    template()
    as_another_user(folder)
    _variables(folder, HOME=None, XDG_CACHE_HOME=None)
    _in_a_temporary_folder(folder, "no home")


@fault("compile cache", "HOME leads nowhere and nobody may make it", TEMPORARY)
def _no_such_home(folder: Path) -> None:
    as_another_user(folder)
    _variables(folder, HOME="/nonexistent", XDG_CACHE_HOME=None)
    _in_a_temporary_folder(folder, "nonexistent")


@fault("compile cache", "a home that cannot be written to", TEMPORARY)
def _read_only_home(folder: Path) -> None:
    home = folder / "home"
    home.mkdir(mode=0o500)
    as_another_user(folder)
    _variables(home, XDG_CACHE_HOME=None)
    _in_a_temporary_folder(folder, "Permission denied")


@fault("compile cache", "a home on a disk that is read-only", TEMPORARY)
def _read_only_disk(folder: Path) -> None:
    with small_disk(folder, "1m") as place:
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        _variables(place, XDG_CACHE_HOME=None)
        _in_a_temporary_folder(folder, "Read-only")


@fault("compile cache", "a folder of another user", TEMPORARY)
def _foreign_folder(folder: Path) -> None:
    path = filled(folder)
    if os.geteuid() != 0:
        raise NotHere("only root can give files away")
    os.chown(path.parent, 65534, 65534)
    path.write_bytes(b"theirs")
    _in_a_temporary_folder(folder, "another user")
    assert path.read_bytes() == b"theirs"


@fault("compile cache", "a file where the folder should be", TEMPORARY)
def _file(folder: Path) -> None:
    (folder / "cache").write_text("mine")
    _in_a_temporary_folder(folder, "File exists")


@fault("compile cache", "a folder in one that everybody may write to", TEMPORARY)
def _in_the_open(folder: Path) -> None:
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    os.environ["GUIDES_CACHE"] = str(folder / "open" / "cache")
    _in_a_temporary_folder(folder, "open to all")


@fault("compile cache", "a folder of this user that everybody may write to", "made private, what is sound in it is used")
def _opened(folder: Path) -> None:
    path = filled(folder)
    path.parent.chmod(0o777)
    before = path.stat().st_ino
    same(fit())
    assert path.stat().st_ino == before
    assert path.parent.stat().st_mode & 0o777 == 0o700


@fault("compile cache", "an umask that hides nothing", "folder and libraries are private all the same")
def _umask(folder: Path) -> None:
    os.umask(0)
    same(fit())
    (library,) = libraries(folder / "cache")
    assert library.stat().st_mode & 0o777 == 0o600
    assert library.parent.stat().st_mode & 0o777 == 0o700


def _traced(said: str, **options: object) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        same(fit(**options))
    relevant = [w for w in caught if issubclass(w.category, errors.StorageWarning | errors.EagerFallbackWarning)]
    assert [w.category for w in relevant] == [errors.EagerFallbackWarning], [str(w.message) for w in relevant]
    assert said in str(relevant[0].message), relevant[0].message


TRACED = "one warning that says it, the fit goes on traced, nothing is left in the folder"


@fault("compile cache", "a full disk (no file beyond 4 KB)", TRACED)
def _limited(folder: Path) -> None:
    template()
    full_after(4096)
    _traced("File")
    assert libraries(folder / "cache") == []


@fault("compile cache", "a full disk (a tmpfs of 32 KB)", TRACED)
def _full(folder: Path) -> None:
    with small_disk(folder, "32k") as place:
        os.environ["GUIDES_CACHE"] = str(place / "cache")
        _traced("o space left")
        assert list((place / "cache").iterdir()) == []


@fault("compile cache", "what killed compilers and writers left behind", "cleared away after an hour")
def _left_behind(folder: Path) -> None:
    place = folder / "cache"
    place.mkdir()
    for name in (f"{cache.COMPILING}x", f"{cache.COMPILING}new"):
        (place / name).mkdir()
    for name in (".x.so.0123.tmp", ".new.so.0123.tmp"):
        (place / name).write_text("half")
    for name in (f"{cache.COMPILING}x", ".x.so.0123.tmp"):
        os.utime(place / name, (0, 0))
    same(fit())
    left = {p.name for p in place.iterdir()} - {p.name for p in libraries(place)}
    assert left == {f"{cache.COMPILING}new", ".new.so.0123.tmp"}, left


@fault("compile cache", "a writer killed at a random moment, thirty times", "the folder has whole libraries only")
def _killed_writers(folder: Path) -> None:
    for number in range(30):
        process = os.fork()
        if process == 0:
            for k in range(1000):
                cache.keep(f"{number:020x}{k:020x}", ".so", os.urandom(200_000))
            os._exit(0)
        time.sleep(0.01 + 0.002 * number)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    for path in libraries(folder / "cache"):
        assert cache._sound(path), path


@fault("compile cache", "four processes that compile the same loop at once", "the right numbers in all, sound libraries")
def _at_once(folder: Path) -> None:
    template()
    processes = []
    for _ in range(4):
        processes.append(os.fork())
        if processes[-1] == 0:
            code = 1
            with contextlib.suppress(BaseException):
                same(fit())
                code = 0
            os._exit(code)
    assert [os.waitpid(p, 0)[1] for p in processes] == [0] * 4
    assert libraries(folder / "cache")
    assert all(cache._sound(p) for p in libraries(folder / "cache"))


def script(path: Path, text: str) -> str:
    """Write an executable shell script and return its path."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def _gxx() -> str:
    found = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if found is None:
        raise NotHere("there is no C++ compiler")
    return found


@fault("compilers", "another version of the compiler than made the library", "the library is not used, a new one is made")
def _upgraded(folder: Path) -> None:
    path = filled(folder)
    for number in (1, 2):
        answer = f'if [ "$1" = --version ]; then echo {number}; else exec {_gxx()} "$@"; fi'
        os.environ["CXX"] = script(folder / "cxx", answer)
        compilers.built_by.cache_clear()
        same(fit())
        assert len(libraries(path.parent)) == 1 + number


WORDS: dict[str, Callable[[Path], str]] = {
    "of several words": lambda folder: f"env LANG=C {_gxx()}",
    "of several words, one with a space in it": lambda folder: f"'{_spaced(folder)}' -g0",
    "in a folder with a space in its name": lambda folder: _spaced(folder),
}


def _spaced(folder: Path) -> str:
    (folder / "my tools").mkdir()
    return script(folder / "my tools" / "cxx", f'echo used >> {folder}/used; exec {_gxx()} "$@"')


for _what, _command in WORDS.items():

    @fault("compilers", f"$CXX {_what}", "that compiler is used", _command, quick=_what == "of several words")
    def _words(folder: Path, command: Callable[[Path], str]) -> None:
        os.environ["CXX"] = command(folder)
        same(fit())
        (_,) = libraries(folder / "cache")
        chosen = compilers.compiler()
        assert chosen is not None
        assert " ".join(chosen) == os.environ["CXX"].replace("'", "")


@fault("compilers", "$CXX is the compiler of the wheel ziglang", "that compiler is used")
def _zig(folder: Path) -> None:
    python = os.environ.get("ZIG_PYTHON", sys.executable)
    if subprocess.run([python, "-m", "ziglang", "version"], capture_output=True).returncode:
        raise NotHere("the package ziglang is not installed")
    os.environ["CXX"] = f"{python} -m ziglang c++"
    same(fit())
    (_,) = libraries(folder / "cache")


@fault("compilers", "$CXX is ccache g++", "that compiler is used")
def _ccache(folder: Path) -> None:
    if not has_command("ccache"):
        raise NotHere("ccache is not installed")
    os.environ["CXX"] = f"ccache {_gxx()}"
    same(fit())
    (_,) = libraries(folder / "cache")


for _what, _text in {"is not there": "no-such-compiler", "is a quotation that does not end": "g++ 'oh"}.items():

    @fault("compilers", f"$CXX {_what}", "the system's compiler is used", _text)
    def _nonsense(folder: Path, text: str) -> None:
        _gxx()
        os.environ["CXX"] = text
        same(fit())
        (_,) = libraries(folder / "cache")


BROKEN: dict[str, tuple[str, str]] = {
    "that fails": ("echo some error: no licence >&2; exit 1", "no licence"),
    "that dies by a signal": ("kill -SEGV $$", "failed"),
    "that says it is done and writes nothing": ("exit 0", "No such file"),
    "that writes nonsense": ('while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"', "loop.so"),
    "that writes an empty library": ('while [ "$1" != -o ]; do shift; done; : > "$2"', "too short"),
}
for _what, (_text, _said) in BROKEN.items():

    @fault("compilers", f"a compiler {_what}", TRACED, _text, _said)
    def _broken(folder: Path, text: str, said: str) -> None:
        os.environ["CXX"] = script(folder / "cxx", f'[ "$1" = --version ] && exit 0\n{text}')
        _traced("" if said == "loop.so" else said)
        assert list((folder / "cache").iterdir()) == []


def _nobody_runs(folder: Path) -> None:
    time.sleep(0.3)
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(folder) not in left.replace(f"ps {folder}", ""), left


GIVEN_UP = "given up on after a limit with one warning, not waited for again, and none of its processes is left"


@fault("compilers", "a compiler that hangs at work, with a child that hangs too", GIVEN_UP)
def _hangs(folder: Path) -> None:
    from guides.compile.native import build as library

    library._LIMIT = library._LATE = 0.5
    text = f'[ "$1" = --version ] && exit 0\nsh -c "sleep 1000; : {folder}" &\nsleep 1000'
    os.environ["CXX"] = script(folder / "cxx", text)
    _traced("did not end within")
    began = time.monotonic()
    _traced("did not end within")
    assert time.monotonic() - began < 20
    _nobody_runs(folder)


@fault("compilers", "a compiler that does not tell its version", GIVEN_UP)
def _mute(folder: Path) -> None:
    compilers._SECONDS_TO_ANSWER = 0.5
    os.environ["CXX"] = script(folder / "cxx", "sleep 1000")
    _traced("did not end within")
    _nobody_runs(folder)


@fault("compilers", "the process is killed while its compiler hangs", "the compiler and its children end too")
def _orphans(folder: Path) -> None:
    text = f'[ "$1" = --version ] && exit 0\n: > {folder}/begun\nsh -c "sleep 1000; : {folder}" &\nsleep 1000'
    os.environ["CXX"] = script(folder / "cxx", text)
    process = os.fork()
    if process == 0:
        fit()
        os._exit(0)
    for _ in range(600):
        if (folder / "begun").exists():
            break
        time.sleep(0.1)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    _nobody_runs(folder)


@fault("compilers", "Ctrl-C while the compiler works", "it ends, and the fit with it")
def _interrupted(folder: Path) -> None:
    text = f'[ "$1" = --version ] && exit 0\n: > {folder}/begun; kill -INT {os.getpid()}\nsleep 1000; : {folder}'
    os.environ["CXX"] = script(folder / "cxx", text)
    warnings.simplefilter("ignore", errors.InterruptedFitWarning)
    with contextlib.suppress(KeyboardInterrupt):
        assert fit().interrupted
    _nobody_runs(folder)


@fault("compilers", "no compiler at all", TRACED)
def _none(folder: Path) -> None:
    template()
    os.environ["PATH"] = str(folder)
    os.environ.pop("CXX", None)
    _traced("no C++ compiler")


_CHECKED = """
import sys, warnings
warnings.simplefilter("error")
from tests.faults.fits import fit, same
from guides.compile import cache
same(fit())
print([cache._sound(p) for p in cache.cache_folder().glob("*.so")])
"""


@fault("compile cache", "a library that was damaged, in a fresh process", AGAIN)
def _fresh(folder: Path) -> None:
    path = filled(folder)
    flip(0.3)(path)
    done = child(_CHECKED, OMP_NUM_THREADS="1")
    assert done.stdout.strip() == "[True]", done.stderr
