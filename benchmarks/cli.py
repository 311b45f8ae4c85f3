"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import errno
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

import guides
import zoo
from _posterior_zoo_registry import Registry, UnknownNameError, __version__
from _posterior_zoo_registry.extras import MissingExtraError, check_extra
from benchmarks import SUITES, TASKS
from benchmarks.reporting.listing import described, expected
from benchmarks.reporting.pictures import records as drawing
from benchmarks.reporting.report import build, compared, sections
from benchmarks.reporting.summary import write
from benchmarks.running import runner
from benchmarks.running.dispatch import WorkerError
from benchmarks.running.executors import opened
from benchmarks.running.provenance import ROOT
from benchmarks.running.store import ResultsFolder, ResultsFolderError, read_folders
from benchmarks.speed import command
from benchmarks.speed import compiled as trying
from benchmarks.speed.sides import Failure
from guides import diagnostics

__all__ = ["main"]

KINDS = ("models", "guides", "samplers", "solvers", "objectives", "diagnostics", "datasets", "tasks", "suites")


class _Group(click.Group):
    """A group of commands that answers a wrong name or setting with one line and exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (UnknownNameError, ResultsFolderError, MissingExtraError) as error:
            raise _UsageError(str(error)) from error
        except OSError as error:
            if error.errno in (None, errno.EPIPE):  # click knows that nobody reads any more
                raise
            raise click.ClickException(f"{error}; what was finished before is kept") from error

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            commands: Registry[click.Command] = Registry("command", group="")
            for name, command in self.commands.items():
                commands.add(name, command)
            commands[args[0]]
        return super().resolve_command(ctx, args)


class _UsageError(click.ClickException):
    """A wrong name or setting: one line, exit status 2."""

    exit_code = 2


def _names(_: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Split ``a,b`` into names."""
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    if not names:
        raise click.BadParameter("give one or more names, separated by commas", param=option)
    return names


def _command_line() -> str:
    """Return the command that runs, for the manifest."""
    return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])


@contextmanager
def _ended_in_order() -> Iterator[list[int]]:
    """Let SIGTERM end a run as Ctrl-C does; whether it came is in the list."""
    came: list[int] = []

    def end(number: int, _: Any) -> None:
        came.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pyro-posterior-zoo")
def main() -> None:
    """Compare approximate posteriors under published protocols.

    \b
    Start here:
      python -m benchmarks list guides
      python -m benchmarks run quick
      python -m benchmarks report results/quick

    \b
    One task, three guides, two seeds, then the table again:
      python -m benchmarks run blundell_curve --guides map,mean_field,laplace --seeds 2 --out results/curve
      python -m benchmarks compare results/curve

    A guide that another installed package registers under the entry-point group "guides.families" takes part by itself.
    The same commands as `posterior-zoo`, from any folder; `_POSTERIOR_ZOO_COMPLETE=bash_source posterior-zoo` prints its
    completion for bash (zsh_source, fish_source).
    """


@main.command("list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
def list_(kind: str | None) -> None:
    """List what is registered, here and by other installed packages: what each is, and what for.

    \b
    Examples:
      python -m benchmarks list             everything
      python -m benchmarks list guides      approximate posteriors
      python -m benchmarks list suites      what `run` accepts besides the tasks
    """
    kinds = (kind,) if kind else KINDS
    for each in kinds:
        lines = list(described(_registry(each)))
        if len(kinds) > 1:
            click.secho(each, bold=True)
        width = max((len(name) for name, _, _ in lines), default=0)
        for name, what, use in lines:
            click.echo(f"  {name.ljust(width)}  {what}{f' For: {use}.' if use else ''}".rstrip())
        if len(kinds) > 1:
            click.echo()


def _registry(kind: str) -> Mapping[str, Any]:
    """Return the registry of a kind."""
    found: dict[str, Callable[[], Mapping[str, Any]]] = {
        "models": lambda: zoo.models,
        "datasets": lambda: zoo.datasets.registry,
        "guides": lambda: guides.families,
        "samplers": lambda: guides.samplers,
        "solvers": lambda: guides.solvers,
        "objectives": lambda: guides.objectives,
        "diagnostics": lambda: diagnostics.diagnostics_registry,
        "tasks": lambda: TASKS,
        "suites": lambda: SUITES,
    }
    return found[kind]()


@main.command()
@click.argument("target", metavar="SUITE|TASK")
@click.option("--guides", "guide_labels", callback=_names, metavar="A,B", help="Guides to run; default: the suite's own.")
@click.option("--tasks", callback=_names, metavar="A,B", help="Tasks of the suite to run, its optional ones too.")
@click.option("--seeds", type=int, default=1, show_default=True, metavar="N", help="Seeds for each split.")
@click.option("--splits", type=int, metavar="N", help="Splits of each task; default: the suite's own number.")
@click.option("--epochs", type=int, metavar="N", help="Epochs instead of the protocol's (which makes it another protocol).")
@click.option("--samples", type=int, metavar="N", help="Draws behind every number (importance samples of a log p(x)).")
@click.option(
    "--as-printed",
    "variant",
    flag_value="as_printed",
    help="What the report's equations say where they are wrong; for suites that have this variant: adaptive.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--jobs",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Processes to share the tasks that use one thread; default: one for each core.",
)
@click.option(
    "--executor",
    "spec",
    metavar="SPEC",
    help="Where cells run: local (default), dask:ADDRESS, slurm:partition=NAME,time=MINUTES,parallel=N, "
    "submitit-local:parallel=N, or MODULE:FUNCTION that returns a concurrent.futures.Executor.",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder of results; default: results/TARGET.")
@click.option("--resume", is_flag=True, help="Keep what the folder holds and run only what is missing or failed.")
@click.option("--report/--no-report", "with_report", default=True, help="Write report.html and report.md at the end.")
@click.option("--dry-run", is_flag=True, help="Say which cells would run and how long they may take; run nothing.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def run(
    target: str,
    guide_labels: tuple[str, ...] | None,
    tasks: tuple[str, ...] | None,
    seeds: int,
    splits: int | None,
    epochs: int | None,
    samples: int | None,
    variant: str | None,
    device: str,
    jobs: int,
    spec: str | None,
    out: Path | None,
    resume: bool,
    with_report: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Run a suite or a task and record every cell as it finishes.

    One cell is one guide on one split of one task with one seed. A run that was killed goes on with --resume. A cell that
    fails is recorded with its error and the others go on; the exit status then is 1.

    \b
    Examples:
      python -m benchmarks run quick
      python -m benchmarks run table1 --splits 20
      python -m benchmarks run uci --guides mean_field,laplace --splits 5 --out results/uci5
      python -m benchmarks run uci --tasks uci_kin8nm,uci_power
      python -m benchmarks run blundell_curve --guides laplace,laplace:curvature=kron
      python -m benchmarks run mnist --epochs 30 --guides amortized,amortized:objective=iwae:num_particles=5
      python -m benchmarks run adaptive --as-printed
      python -m benchmarks run quick --resume
      python -m benchmarks run uci --splits 5 --dry-run
      python -m benchmarks run uci --executor dask:tcp://head:8786

    Data that is not embedded is searched in the folder that ZOO_DATA names, then in the cache, then downloaded.
    """
    if epochs is not None and epochs < 1:
        raise _UsageError(f"--epochs {epochs}: give a number of 1 or more")
    overrides = {"epochs": epochs, "steps": None} if epochs else {}
    ended: list[int] = []
    try:
        work = runner.plan(
            target,
            guide_labels=guide_labels,
            tasks=tasks,
            splits=splits,
            seeds=seeds,
            overrides=overrides,
            num_samples=samples,
            variant=variant,
        )
        folder = ResultsFolder(out or Path("results") / work.target)
        if dry_run:
            click.echo("\n".join(expected(work, folder.path)))
            return
        check_extra("report", "a run, which keeps posteriors and pictures,")
        with _ended_in_order() as ended, opened(spec) as executor:
            outcome = runner.run(
                work,
                folder,
                device=device,
                resume=resume,
                progress=not quiet,
                command=_command_line(),
                jobs=jobs,
                executor=executor,
            )
    except ValueError as error:
        raise _UsageError(str(error)) from error
    except WorkerError as error:
        raise click.ClickException(f"{error}. Finished cells are kept; go on with the same command and --resume") from error
    except KeyboardInterrupt:
        where = out or Path("results") / target
        click.echo(f"\nInterrupted; finished cells are kept. Go on with the same command and --resume ({where}).", err=True)
        sys.exit(128 + (signal.SIGTERM if ended else signal.SIGINT))
    _tell(outcome, work.skipped, folder, with_report)


def _tell(outcome: runner.Outcome, skipped: Mapping[tuple[str, str], str], folder: ResultsFolder, with_report: bool) -> None:
    """Say what a run did, print its tables, write its report; exit with 1 if a cell failed."""
    if outcome.kept:
        click.echo(f"{outcome.kept} cells were there already, {outcome.run} ran.")
    for (task, guide), reason in skipped.items():
        click.echo(f"not run: {guide} on {task}: {reason}")
    read = read_folders([folder.path])
    for section in sections(read):
        click.echo()
        click.echo(section.text())
    if with_report:
        page = build(folder.path)
        click.echo(f"\nReport: {page}")
    if outcome.failed:
        click.echo(f"\n{len(outcome.failed)} of {outcome.run} cells failed:", err=True)
        for record in outcome.failed:
            cell = f"{record['task']} · {record['guide']} · split {record['split']} · seed {record['seed']}"
            click.echo(f"  {cell}: {record['error']['type']}: {record['error']['message']}", err=True)
        click.echo("Tracebacks are in cells.jsonl; --resume tries them again.", err=True)
        sys.exit(1)


@main.command()
@click.argument("folders", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path))
@click.option("--metric", "metric_name", metavar="NAME", help="Compare by this metric; default: each task's decisive one.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
def compare(folders: tuple[Path, ...], metric_name: str | None, markdown: bool) -> None:
    """Print one table: guide by task, mean ± standard error, best and ties marked.

    Several folders are put side by side; a guide that is in more than one of them is named with its folder.

    \b
    Examples:
      python -m benchmarks compare results/quick
      python -m benchmarks compare results/uci results/mine --metric rmse
    """
    try:
        table = compared(read_folders(folders), metric_name)
    except ValueError as error:
        raise _UsageError(str(error)) from error
    click.echo(table.markdown() if markdown else table.text())


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write DIR/report.html, one file with everything in it, and DIR/report.md with pictures beside it.

    \b
    Example:
      python -m benchmarks report results/quick
    """
    check_extra("report", "a report")
    click.echo(build(folder))


@main.command("open")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def open_(folder: Path) -> None:
    """Show DIR/report.html in a browser, written first if it is not there.

    \b
    Example:
      python -m benchmarks open results/quick
    """
    page = folder / "report.html"
    if not page.is_file():
        check_extra("report", "a report")
        page = build(folder)
    click.echo(page)
    click.launch(str(page))


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The JSON file to write.")
def results(folder: Path, out: Path) -> None:
    """Write a small JSON summary of a run: what a publication needs, without the cells.

    It holds mean, standard error and count of every metric, the published numbers beside them, and command, seeds,
    splits, device, versions and commit.

    \b
    Example:
      python -m benchmarks results results/uci --out docs/results/uci.json
    """
    write(folder, out)
    click.echo(out)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/pictures"), show_default=True, metavar="DIR")
@click.option("--from", "source", type=click.Path(path_type=Path), metavar="DIR", help="Draw from this run, fit nothing.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def pictures(out: Path, source: Path | None, quiet: bool) -> None:
    """Draw the README's pictures.

    Without --from, fits what they show first, in a temporary folder.

    \b
    Examples:
      python -m benchmarks pictures
      python -m benchmarks pictures --from results/quick --out docs/pictures
    """

    def draw(folder: Path) -> Iterable[Path]:
        return drawing.write(read_folders([folder])[0][2], folder, out, drawing.README)

    if source is not None:
        for path in draw(source):
            click.echo(path)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "pictures"
        work = runner.plan("pictures")
        runner.run(work, ResultsFolder(folder), progress=not quiet, command=_command_line())
        for path in draw(folder):
            click.echo(path)


@main.command()
@click.option("--quick", is_flag=True, help="A first look: two small cases, few and short blocks; minutes, not an hour.")
@click.option(
    "--only",
    callback=_names,
    metavar="A,B",
    help="Cases: bnn, bnn20, eight_schools, vae, classifier; on a GPU bnn1000, vae4096.",
)
@click.option(
    "--contenders",
    callback=_names,
    metavar="A,B",
    help="Who takes part: pyro, pyro_jit, torch, torch_compiled, numpyro_update, numpyro_scan, ours_eager, ours_trace, "
    "ours_step, ours_loop, ours_default.",
)
@click.option("--scaling", is_flag=True, help="Also measure and draw cost against width, batch, particles, replicates.")
@click.option("--table1", is_flag=True, help="Also time the whole suite table1, 20 splits, with compilation.")
@click.option("--no-extras", is_flag=True, help="Leave out the second start of a compiled fit and peak memory.")
@click.option("--rounds", type=click.IntRange(min=1), metavar="N", help="Blocks of steps for each contender; default 9.")
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="PyTorch's threads; default: 1 where steps are small."
)
@click.option("--numpyro-python", metavar="PATH", help="A Python with NumPyro, if the one that runs this has none.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/speed"), show_default=True, metavar="DIR")
@click.option("--publish", is_flag=True, help="Write docs/results/speed.json and docs/pictures/speed_scaling.png as well.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def speed(
    quick: bool,
    only: tuple[str, ...] | None,
    contenders: tuple[str, ...] | None,
    scaling: bool,
    table1: bool,
    no_extras: bool,
    rounds: int | None,
    threads: int | None,
    numpyro_python: str | None,
    out: Path,
    publish: bool,
    quiet: bool,
) -> None:
    """Time a step of Pyro, NumPyro, plain PyTorch and ours, side by side.

    Everyone computes the same: same model, guide, ELBO, minibatch size, Adam and starting point; losses are compared. Blocks
    of steps take turns, medians and ratios within a round are reported, so a busy machine spoils little. DIR gets
    speed.json, speed.md and, with --scaling, a picture. A ratio below its target is a finding, not a failure: the exit
    status says only whether the measuring worked.

    \b
    Examples:
      python -m benchmarks speed --quick
      python -m benchmarks speed --only bnn,vae --contenders pyro,torch,ours_loop
      python -m benchmarks speed --only bnn --scaling
      python -m benchmarks speed --numpyro-python ~/jax/bin/python
      python -m benchmarks speed --scaling --table1 --publish && python -m docs.writer

    NumPyro is an extra: pip install '.[speed]'. Without it, its rows say so. For numbers worth quoting, let nothing
    else run.
    """
    if publish and quick:
        raise _UsageError("--publish with --quick: publish a run that took its time")
    try:
        request = command.request(
            quick=quick,
            cases=only,
            contenders=contenders,
            scaling=scaling,
            table1=table1,
            extras=not no_extras,
            rounds=rounds,
            threads=threads,
            numpyro_python=numpyro_python,
            command=_command_line(),
        )
        sections_ = command.run(request, out, publish=publish, progress=not quiet)
    except Failure as error:
        raise _UsageError(str(error)) from error
    except KeyboardInterrupt:
        click.echo(f"\nInterrupted; {out / 'speed.json'} has what was measured.", err=True)
        sys.exit(130)
    for section in sections_:
        click.echo(section.text())
        click.echo()
    click.echo(f"Report: {out / 'speed.md'}")


@main.command()
@click.option("--guides", "guide_names", callback=_names, metavar="A,B", help="Guides to fit with; default: the usual four.")
@click.option("--publish", is_flag=True, help="Write docs/results/compiled.json.")
def compiled(guide_names: tuple[str, ...] | None, publish: bool) -> None:
    """Say which models run compiled, and why the others do not.

    Fits every registered model, and small ones in the manner of Pyro's examples, for a few steps with compile="native".

    \b
    Examples:
      python -m benchmarks compiled --guides mean_field
      python -m benchmarks compiled --publish && python -m docs.writer
    """
    records = []
    for record in trying.try_all(guide_names or trying.GUIDES):
        records.append(record)
        click.echo(f"{record['runs'].ljust(9)} {record['model']}, {record['guide']}: {record['why']}".rstrip(": "))
    click.echo("\n" + trying.table(records))
    if publish:
        click.echo(f"\n{trying.publish(records, _command_line(), ROOT)}")
