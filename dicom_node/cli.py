"""The command line: words in, an exit status out.

Owns the commands, their options and the exit statuses; the work is done by the module that each names.
Speaks text and JSON on the standard output; logs and progress go to the standard error stream.
Never imports a heavy room before a command needs it, so that `--help` is quick.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from dicom_node import __version__
from dicom_node.errors import AnatomyNodeError, ConfigurationError, SeriesRejectedError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from dicom_node.config import Config, Destination
    from dicom_node.ct_folder import Progress


class Exit(IntEnum):
    """What the exit status says; 78 is EX_CONFIG of sysexits.h, after which systemd does not restart."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REJECTED = 3
    CONFIGURATION = 78


app = typer.Typer(
    help="A DICOM node that contours head-and-neck CT and returns RT Structure Sets. "
    "Not a medical device until a clinic has commissioned it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks show local values, which may hold patient data
    rich_markup_mode=None,
)
jobs_app = typer.Typer(help="What happened to each series, and why.", rich_markup_mode=None)
models_app = typer.Typer(
    help="Model packages: list; and with the extra `train`: train, evaluate, export.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
shadow_app = typer.Typer(help="How a candidate model agrees with the approved one.", rich_markup_mode=None)
app.add_typer(jobs_app, name="jobs")
app.add_typer(shadow_app, name="shadow")
app.add_typer(models_app, name="models")

CONFIG_VARIABLE = "ANATOMYNODE_CONFIG"
"""Names the configuration where no option does; the installed command sets it."""
ConfigPath = Annotated[
    Path,
    typer.Option("--config", help="The configuration file.", show_default=True, envvar=CONFIG_VARIABLE),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
JobsConfigPath = Annotated[
    Path | None,
    typer.Option("--config", help="The configuration file; may also stand before the command."),
]
JobNumber = Annotated[int, typer.Argument(help="The job's number, as `anatomynode jobs` lists it.")]
DEFAULT_CONFIG = Path("config.yaml")


def _print_json(value: Mapping[str, Any] | list[Any]) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on the standard error stream that is gone at the end; what moves it."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("", total=None)
        yield lambda what, done, total: bars.update(bar, description=what, completed=done, total=total)


def _picture(file: Path | None) -> Path | None:
    if file is not None and file.suffix.lower() not in {".png", ".html"}:
        raise typer.BadParameter(f"{file.name} ends neither in .png nor in .html")
    return file


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"anatomynode {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    from dicom_node import logs
    from dicom_node.config import Logging

    # Before any library warns: pydicom would quote the patient. The node's processes set up their own.
    logs.configure(Logging(level="warning", format="console"), "command")


@app.command()
def serve(config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Run the node: the listener and the worker, restarted when they crash."""
    from dicom_node import daemon

    raise typer.Exit(daemon.serve(config))


@app.command()
def listen(config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Run the listener alone: receive, and show the figures by HTTP."""
    from dicom_node import daemon

    daemon.listen(config)


@app.command()
def work(config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Run the worker alone: contour what was received, and send the results."""
    from dicom_node import daemon

    daemon.work(config)


@app.command()
def commission(
    config: ConfigPath = DEFAULT_CONFIG,
    output: Annotated[Path, typer.Option("--output", help="Folder for the report.")] = Path(),
    compare: Annotated[
        Path | None,
        typer.Option("--compare", help="JSON of an earlier report: what has drifted?", exists=True),
    ] = None,
) -> None:
    """Go through known bodies on this installation and write a dated report to sign."""
    from dicom_node import commissioning

    done = commissioning.commission(config, output, datetime.now(UTC), compare, typer.echo)
    for drift in done.drifts:
        typer.echo(f"DRIFT {drift}")
    typer.echo(f"{'all points hold' if done.holds else 'NOT all points hold'}; the report is in {output}")
    if not done.holds:
        raise typer.Exit(Exit.FAILED)


@app.command()
def contour(
    folder: Annotated[Path, typer.Argument(help="Folder with one CT series.", exists=True, file_okay=False)],
    output: Annotated[Path, typer.Option("--output", help="The RT Structure Set to write.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Model package, or its whole path; without it the configured one."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Configuration; without it the defaults, and the CPU is allowed."),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            "--preview", metavar="FILE.png|html", callback=_picture, help="Show the contours on the CT."
        ),
    ] = None,
    destination: Annotated[
        str | None,
        typer.Option("--destination", help="Write what this destination of the configuration would get."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Contour one CT series in a folder, without the network."""
    from dicom_node import contouring

    settings = _settings_of_a_person(config, model)
    try:
        with _progress() as progress:
            report = contouring.contour_folder(
                folder,
                output,
                settings,
                preview,
                progress,
                destination,
            )
    except AnatomyNodeError as problem:
        if as_json:
            _print_json(contouring.failure_report(problem))
        raise
    if as_json:
        _print_json(report)
    else:
        typer.echo("\n".join(contouring.in_words(report)))


@app.command()
def explain(
    folder: Annotated[Path, typer.Argument(help="Folder of CT series.", exists=True, file_okay=False)],
    calling: Annotated[str | None, typer.Option("--calling", help="The AE title that would send it.")] = None,
    called: Annotated[
        str | None,
        typer.Option("--called", help="The one that it would call; without it the node's own."),
    ] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Say which routing rule a series meets and why, and what would follow, without contouring it.

    Shows what the files say of themselves, such as their descriptions.
    """
    from dicom_node import explain as explaining
    from dicom_node.config import read_config

    settings = read_config(config)
    with _progress() as progress:
        explanation = explaining.explain(folder, settings, calling, called, progress)
    _tell(explanation, as_json)


@app.command()
def replay(
    job: JobNumber,
    output: Annotated[Path, typer.Option("--output", help="The RT Structure Set to write.")],
    model: Annotated[
        str | None, typer.Option("--model", help="Another model package; without it the configured one.")
    ] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Contour a job's stored series again into a file, and show what would change; nothing is sent."""
    from dicom_node import replay as replaying

    settings = _settings_of_a_person(config, model)
    with _database(config) as engine, _progress() as progress:
        done = replaying.replay(
            engine,
            job,
            output,
            settings if model else replaying.as_now(engine, job, settings),
            progress,
        )
    _tell(done, as_json)


@app.command()
def send(
    folder: Annotated[Path, typer.Argument(help="Folder of DICOM files.", exists=True, file_okay=False)],
    to: Annotated[str, typer.Option("--to", metavar="HOST:PORT", help="Where to.")],
    aet: Annotated[str, typer.Option("--aet", help="The receiver's AE title.")],
    calling: Annotated[str, typer.Option("--calling", help="Our AE title.")] = "ANATOMYNODE",
) -> None:
    """Push a folder of DICOM files, as a scanner would."""
    from rich.console import Console
    from rich.progress import Progress

    from dicom_node.config import Destination
    from dicom_node.send import send_folder

    host, port = _address(to)
    try:
        receiver = Destination(name="receiver", host=host, port=port, ae_title=aet, calling_ae_title=calling)
    except ValueError as problem:
        raise typer.BadParameter(
            "an AE title has 1 to 16 printable characters", param_hint="--aet"
        ) from problem
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("sending", total=None)
        summary = send_folder(
            folder, receiver, calling, lambda done, total: progress.update(bar, completed=done, total=total)
        )
    typer.echo(summary.in_words())
    if summary.failed:
        raise typer.Exit(Exit.FAILED)


@app.command()
def check(config: ConfigPath = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Check the configuration and the machine; name every problem at once."""
    from dicom_node import check as checking

    raise typer.Exit(checking.run(config, as_json))


@app.command()
def conformance(
    config: ConfigPath = DEFAULT_CONFIG,
    output: Annotated[
        Path | None, typer.Option("--output", help="The Markdown file to write; without it, the terminal.")
    ] = None,
) -> None:
    """Write the DICOM conformance statement (PS3.2) of this configuration."""
    from dicom_node.config import read_config
    from dicom_node.conformance import statement

    text = statement(read_config(config))
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="Where the copy goes.", dir_okay=False)],
    config: ConfigPath = DEFAULT_CONFIG,
) -> None:
    """Copy the database to a file while the node runs."""
    from dicom_node.backup import copy_database
    from dicom_node.config import read_config

    size_bytes = copy_database(read_config(config).storage.database, file)
    typer.echo(f"{file}: {size_bytes / 1e6:.1f} MB; docs/OPERATIONS.md says how to restore it")


@app.command()
def schema(
    config: ConfigPath = DEFAULT_CONFIG,
    program: Annotated[
        bool, typer.Option("--program", help="Only the schema that this program makes, for scripts.")
    ] = False,
    back_to: Annotated[
        str | None,
        typer.Option("--back-to", help="Take the database back to an earlier one; the node must not run."),
    ] = None,
) -> None:
    """Tell the schema of the database, or take it back before an earlier program is installed."""
    from dicom_node import migrate

    if program:
        typer.echo(migrate.newest())
        return
    with _database(config) as engine:
        path = Path(str(engine.url.database))
        if back_to is not None:
            migrate.take_back(path, back_to)
        typer.echo(f"database {migrate.revision(path)}, program {migrate.newest()}")


@app.command()
def audit(
    config: ConfigPath = DEFAULT_CONFIG,
    since: Annotated[
        datetime | None, typer.Option("--since", help="UTC; a day before --until without it.")
    ] = None,
    until: Annotated[datetime | None, typer.Option("--until", help="UTC; now without it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Who sent what when, where results went, what was removed, and what a person decided."""
    from dicom_node import audit as auditing

    stop = until.replace(tzinfo=UTC) if until else datetime.now(UTC)
    first = since.replace(tzinfo=UTC) if since else stop - timedelta(days=1)
    with _database(config) as engine:
        _tell(auditing.trail(engine, first, stop), as_json)


@app.command()
def demo(
    ct: Annotated[
        Path | None, typer.Option("--ct", help="Your own CT series; without it the phantom.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="Folder for the results.")] = Path("demo-output"),
) -> None:
    """Start a node and a stand-in PACS on loopback, send a series, show what comes back."""
    from dicom_node import demo as demonstration

    demonstration.run(ct, output)


@jobs_app.callback(invoke_without_command=True)
def _jobs(context: typer.Context, config: ConfigPath = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Without a command: the list of the jobs, the newest first."""
    context.obj = config
    if context.invoked_subcommand is None:
        jobs_list(context, as_json=as_json)


@jobs_app.command("list")
def jobs_list(context: typer.Context, config: JobsConfigPath = None, as_json: AsJson = False) -> None:
    """List the jobs, the newest first."""
    from dicom_node import story

    with _database(config or context.obj) as engine:
        _tell(story.list_jobs(engine), as_json)


@jobs_app.command("find")
def jobs_find(
    context: typer.Context,
    number: Annotated[
        str, typer.Argument(help="Accession number or patient ID; only its keyed hash is kept.")
    ],
    config: JobsConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Find the jobs of an accession number or a patient ID."""
    from dicom_node import story
    from dicom_node.config import read_config
    from dicom_node.keyed_hash import KeyedHash, load_key

    hashed = KeyedHash(load_key(read_config(config or context.obj)))
    with _database(config or context.obj) as engine:
        _tell(story.find(engine, hashed, number), as_json)


@jobs_app.command("show")
def jobs_show(
    context: typer.Context, job: JobNumber, config: JobsConfigPath = None, as_json: AsJson = False
) -> None:
    """Tell the story of a job: what came, what was made of it, where it went."""
    from dicom_node import story

    with _database(config or context.obj) as engine:
        _tell(story.show(engine, job), as_json)


@jobs_app.command("preview")
def jobs_preview(
    context: typer.Context,
    job: JobNumber,
    output: Annotated[
        Path, typer.Option("--output", metavar="FILE.png|html", callback=_picture, help="To be written.")
    ],
    config: JobsConfigPath = None,
) -> None:
    """Show the contours of a job on its CT, from what the node has stored."""
    from dicom_node import painting
    from dicom_node.config import read_config

    storage = read_config(config or context.obj).storage
    with _database(config or context.obj) as engine:
        painting.show(engine, job, storage, output)


@jobs_app.command("retry")
def jobs_retry(context: typer.Context, job: JobNumber, config: JobsConfigPath = None) -> None:
    """Do a job that has ended again, or only send what a destination refused of it."""
    from dicom_node import story

    with _database(config or context.obj) as engine:
        typer.echo(story.retry(engine, job))


@jobs_app.command("release")
def jobs_release(
    context: typer.Context,
    job: JobNumber,
    destination: Annotated[
        str | None, typer.Option("--destination", help="Only what is held for this destination.")
    ] = None,
    config: JobsConfigPath = None,
) -> None:
    """Let a job, or what a destination was to get of it, go on that was held for a person."""
    from dicom_node import story

    with _database(config or context.obj) as engine:
        typer.echo(story.release(engine, job, destination=destination))


@jobs_app.command("cancel")
def jobs_cancel(context: typer.Context, job: JobNumber, config: JobsConfigPath = None) -> None:
    """End a job, or what is left of its deliveries."""
    from dicom_node import story

    with _database(config or context.obj) as engine:
        typer.echo(story.cancel(engine, job))


@shadow_app.callback(invoke_without_command=True)
def _shadow(context: typer.Context, config: ConfigPath = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Without a command: structure by structure, over all series that were compared."""
    from dicom_node import shadow_runs

    context.obj = config
    if context.invoked_subcommand is None:
        with _database(config) as engine:
            _tell(shadow_runs.report(engine), as_json)


@shadow_app.command("run")
def shadow_run(context: typer.Context, job: JobNumber, config: JobsConfigPath = None) -> None:
    """Compare one job now; the worker does so by itself whenever it has nothing else to do."""
    from dicom_node import shadow
    from dicom_node.config import read_config
    from dicom_node.supervisor import SUPERVISED

    if os.environ.get(SUPERVISED):
        shadow.end_with_the_worker()
    path = config or context.obj
    with _database(path) as engine:
        run = shadow.compare(engine, read_config(path), job)
    typer.echo(f"job {job}: {run.failure or f'{len(run.agreements or ())} structure(s) compared'}")


@models_app.command("list")
def models_list(
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Folder of packages; without it those of the program.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the model packages, with their checksums and what they draw."""
    from models.card import PACKAGES, ModelPackageError, read_package

    rows, damaged = [], []
    for card in sorted((folder or PACKAGES).glob("*/model.yaml")):
        try:
            described = read_package(card.parent).description
        except ModelPackageError as problem:
            damaged.append(str(problem))
            continue
        names = [structure.name for structure in described.structures]
        rows.append(
            {
                "package": card.parent.name,
                "version": described.version,
                "sha256": described.sha256,
                "structures": names,
            }
        )
    if as_json:
        _print_json({"packages": rows, "damaged": damaged})
    else:
        for row in rows:
            typer.echo(f"{row['package']} {row['version']}\n  sha256 {row['sha256']}")
            typer.echo(f"  draws {', '.join(row['structures'])}")
    for complaint in damaged:
        _complain(complaint)
    if damaged:
        raise typer.Exit(Exit.FAILED)


@models_app.command("train")
def models_train(
    configuration: Annotated[Path, typer.Argument(help="Such as models/configs/anatomynet-hn.yaml.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of patients.", exists=True)],
    output: Annotated[Path, typer.Option("--output", help="Checkpoint and curves; resumed when there.")],
    start_from: Annotated[
        Path | None, typer.Option("--start-from", help="Another training's checkpoint.", exists=True)
    ] = None,
) -> None:
    """Train a network; resumes where a checkpoint is (extra `train`)."""
    with _training():
        from models.training.config import read_config
        from models.training.trainer import train

        train(read_config(configuration), data, output, start_from, report=typer.echo)


@models_app.command("crossvalidate")
def models_crossvalidate(
    configuration: Annotated[Path, typer.Argument(help="Such as models/configs/folds.yaml.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of patients.", exists=True)],
    output: Annotated[Path, typer.Option("--output", help="Checkpoints and tables; resumed when there.")],
    start_from: Annotated[
        Path | None, typer.Option("--start-from", help="Another training's checkpoint.", exists=True)
    ] = None,
) -> None:
    """Train each fold and judge it on the patients that it was not taught (extra `train`)."""
    with _training():
        from models.training.config import read_config
        from models.training.cross_validation import cross_validate

        cross_validate(read_config(configuration), data, output, start_from, report=typer.echo)


@models_app.command("ablate")
def models_ablate(
    configuration: Annotated[Path, typer.Argument(help="Such as models/configs/ablation.yaml.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of patients.", exists=True)],
    output: Annotated[Path, typer.Option("--output", help="Checkpoints and tables; resumed when there.")],
) -> None:
    """Train the paper's other networks with one budget each and compare them (extra `train`)."""
    with _training():
        from models.training.ablation import ablate, read_ablation

        ablate(read_ablation(configuration), data, output, report=typer.echo)


@models_app.command("export")
def models_export(
    checkpoint: Annotated[Path, typer.Argument(help="What training wrote.", exists=True)],
    configuration: Annotated[Path, typer.Argument(help="The training's own.", exists=True)],
    package: Annotated[Path, typer.Option("--package", help="Folder of the model package to make.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Training patients, to measure organ volumes on.")
    ] = None,
    version: Annotated[
        str, typer.Option("--model-version", help="Another whenever the weights are.")
    ] = "0.1.0",
    half: Annotated[bool, typer.Option("--half", help="Convolutions in float16, for GPUs.")] = False,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(
            "--held-out",
            help="held_out.csv of the training, for thresholds and trust; again for taught.csv.",
            exists=True,
        ),
    ] = None,
) -> None:
    """Make a model package from a checkpoint (extra `train`)."""
    with _training():
        from models import export

        described = export.export_package(
            checkpoint, configuration, data, package, version, half, held_out or ()
        )
        typer.echo(f"{package}: {described.name} {described.version}, sha256 {described.sha256}")


@models_app.command("card")
def models_card(
    package: Annotated[Path, typer.Argument(help="Folder of the model package.", exists=True)],
    configuration: Annotated[Path, typer.Argument(help="The training's own.", exists=True)],
) -> None:
    """Write a package's MODEL_CARD.md anew, with the figures of its evaluation (extra `train`)."""
    with _training():
        from models.model_card import write_card
        from models.training.config import read_config

        typer.echo(write_card(package, read_config(configuration)))


class Reference(StrEnum):
    """Whose contours a model is judged by."""

    CLINICAL = "clinical"
    RADIOGRAPHER = "radiographer"


@models_app.command("evaluate")
def models_evaluate(
    data: Annotated[Path, typer.Option("--data", help="Folder of OpenKBP patients (.npz).", exists=True)],
    output: Annotated[
        Path, typer.Option("--output", help="Folder for tables and pictures; gone on with when there.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="Package, or a package's folder; without it the default.")
    ] = None,
    reference: Annotated[
        Reference, typer.Option("--reference", help="Whose contours are the reference.")
    ] = Reference.CLINICAL,
    matrix: Annotated[
        int | None,
        typer.Option("--matrix", min=128, help="Pixels along a slice's side, as of a planning CT: 512."),
    ] = None,
    dressed: Annotated[
        bool,
        typer.Option("--dressed", help="Put couch, head rest and immobilisation mask around the patient."),
    ] = False,
    patients: Annotated[
        int | None, typer.Option("--patients", min=1, help="Only so many; without it all.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", help="scores.csv of another run, to show the difference.", exists=True),
    ] = None,
    observers: Annotated[
        list[Path] | None,
        typer.Option(
            "--observers", help="Folder for the table of two people; repeatable. Default: DATA.", exists=True
        ),
    ] = None,
) -> None:
    """Judge a model through the product: CT series in, RT-STRUCT out, against the patients' own contours."""
    _need_extra("matplotlib", "rtree", "skimage", "trimesh")
    from dicom_node.config import ModelChoice
    from models.card import ModelPackageError
    from models.evaluation import run as evaluation
    from models.evaluation.scores import ScoresError

    plan = evaluation.Plan(
        data=data,
        output=output,
        model=model or ModelChoice().package,
        reference=reference.value,
        matrix=matrix,
        dressed=dressed,
        patients=patients,
        other=compare,
        observers=tuple(observers or ()),
    )
    try:
        evaluation.evaluate(plan, report=typer.echo)
    except (evaluation.EvaluationError, ModelPackageError, ScoresError) as problem:
        _complain(str(problem))
        raise typer.Exit(Exit.FAILED) from problem


@contextmanager
def _training() -> Iterator[None]:
    """Around what needs torch: what a person can put right is said in words.

    Raises:
        ConfigurationError: the extra `train` is not installed.
    """
    _need_extra("torch")
    from models.archives.patients import ArchiveError
    from models.card import ModelPackageError
    from models.training.config import TrainingConfigError
    from models.training.trainer import ResumeError

    try:
        yield
    except (ArchiveError, ModelPackageError, ResumeError, TrainingConfigError) as problem:
        _complain(str(problem))
        raise typer.Exit(Exit.FAILED) from problem


def _need_extra(*modules: str) -> None:
    """Raises ConfigurationError, where modules of the extra `train` are not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigurationError(
            (f"{', '.join(missing)} is missing: install the extra with pip install -e '.[train]'",)
        )


@contextmanager
def _database(config: Path) -> Iterator[Engine]:
    """The node's database, which must be there already."""
    from dicom_node.config import read_config
    from dicom_node.database import open_engine, told_plainly

    path = read_config(config).storage.database
    if not path.is_file():
        raise ConfigurationError((f"{path}: there is no database; the node makes it when it first starts",))
    engine = open_engine(path)
    try:
        with told_plainly(path):
            yield engine
    finally:
        engine.dispose()


class _Told(Protocol):
    """What `story.py` answers."""

    def as_json(self) -> Mapping[str, Any] | list[Any]: ...

    def in_words(self) -> str: ...


def _tell(story: _Told, as_json: bool) -> None:
    """Print what `story.py` found: its data as JSON, or its words."""
    if as_json:
        _print_json(story.as_json())
    else:
        typer.echo(story.in_words())


def _address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, with an IPv6 host in brackets."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise typer.BadParameter(f"{text!r} is not HOST:PORT", param_hint="--to")
    return host.strip("[]"), int(port)


def _destination(to: str, aet: str) -> Destination:
    """The receiver that `--to` and `--aet` name."""
    from pydantic import ValidationError

    from dicom_node.config import Destination as Receiver

    host, port = _address(to)
    try:
        return Receiver(name="receiver", host=host, port=port, ae_title=aet)
    except ValidationError as problem:
        raise typer.BadParameter(
            f"{aet!r} is no AE title (1 to 16 characters)", param_hint="--aet"
        ) from problem


def _settings_of_a_person(config: Path | None, model: str | None) -> Config:
    """The configuration of a command that a person waits for; nothing that it makes leaves by itself.

    Without a file the CPU may stand in: the person sees which device it was.
    """
    from dicom_node.config import Config as Configuration
    from dicom_node.config import Inference, read_config

    if config is None:
        settings = Configuration(peers=(), destinations=(), inference=Inference(allow_cpu=True))
    else:
        settings = read_config(config)
    if model is None:
        return settings
    return settings.model_copy(update={"model": settings.model.model_copy(update={"package": model})})


def main() -> None:
    """Run the command that the arguments name, and exit with its status."""
    try:
        app()
    except SeriesRejectedError as rejection:
        _complain(rejection.reason)
        sys.exit(Exit.REJECTED)
    except ConfigurationError as problem:
        for line in problem.problems:
            _complain(line)
        sys.exit(Exit.CONFIGURATION)
    except AnatomyNodeError as failure:
        _complain(failure.reason)
        sys.exit(Exit.FAILED)


def _complain(reason: str) -> None:
    typer.echo(f"anatomynode: {reason}", err=True)
