"""`regrow probe`: what does the model know, before anything is trained?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regrow.cli.common import RecipeFile, ResumeOption, Seed, Sets, resume_mode, settings

Model = Annotated[str, typer.Argument(help="A folder, a hub name, a .gguf file, or `smollm2`.")]
Folder = Annotated[
    Path, typer.Option("-o", "--output", help="Run folder; every probe of one model may go into the same.")
]
EngineOption = Annotated[str | None, typer.Option(help="auto, transformers, openvino or dummy.")]
OUT = Path("runs/probe")


def register(app: typer.Typer) -> None:
    probe = typer.Typer(
        name="probe",
        no_args_is_help=True,
        help="Ask a model what it knows, before anything is trained.\n\n"
        "`domains`: what it talks about when nobody asks. `mastery`: how well it knows each fact of a file. "
        "`min-k`: whether it has seen a text. `skills`: what learning one thing helps another. Each prints a table, "
        "writes its numbers and a page into the run folder, and continues where it stopped when it is called again.",
    )
    probe.command(name="domains")(domains)
    probe.command(name="mastery")(mastery)
    probe.command(name="min-k")(min_k)
    probe.command(name="skills")(skills)
    app.add_typer(probe)


def domains(
    model: Model,
    labels: Annotated[
        Path,
        typer.Option(
            help="Rows with a `domain` column: what the judge learns the domains from. Add a domain for everything "
            "else, or everything else is put among the others."
        ),
    ],
    output: Folder = OUT,
    samples: Annotated[int | None, typer.Option(help="Texts a repetition (default 200).")] = None,
    repeats: Annotated[int | None, typer.Option(help="Repetitions (default 3).")] = None,
    start: Annotated[
        str | None, typer.Option(help="What texts start from: auto, user (an open user turn), or a text of your own.")
    ] = None,
    hard: Annotated[
        bool | None, typer.Option("--hard", help="Count the likeliest domain instead of averaging probabilities.")
    ] = None,
    engine: EngineOption = None,
    seed: Seed = None,
    resume: ResumeOption = "auto",
    recipe: RecipeFile = None,
    set_: Sets = None,
) -> None:
    """Sample texts that MODEL writes from its start token, and estimate each domain's share (VersaTune).

    The judge is a classifier on sentence embeddings, trained on your labelled texts; what it is worth on labelled
    texts it has not seen is printed every time. Shares come with an interval over the sampled texts.
    """
    from regrow import probing

    chosen = settings(
        recipe, set_, model__model_name_or_path=model, probe__domains__samples=samples,
        probe__domains__repeats=repeats, probe__domains__start=start, probe__domains__labels="hard" if hard else None,
        probe__domains__engine=engine, seed=seed,
    )  # fmt: skip
    print(probing.domains_with(chosen, labels, output, resume=resume_mode(resume)).text())


def mastery(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(
            help="Questions with `answer` or `answers`; a `relation` column groups those that are each other's "
            "examples."
        ),
    ],
    output: Folder = OUT,
    prompts: Annotated[int | None, typer.Option(help="Few-shot prompts a question (default 10).")] = None,
    shots: Annotated[int | None, typer.Option(help="Answered questions in a prompt (default 4).")] = None,
    samples: Annotated[int | None, typer.Option(help="Sampled answers a prompt (default 16).")] = None,
    cost: Annotated[bool, typer.Option("--cost", help="Only say how many answers and tokens it would take.")] = False,
    engine: EngineOption = None,
    seed: Seed = None,
    resume: ResumeOption = "auto",
    recipe: RecipeFile = None,
    set_: Sets = None,
) -> None:
    """Label each fact of DATA as HighlyKnown, MaybeKnown, WeaklyKnown or Unknown to MODEL (SliCK).

    HighlyKnown: right in every few-shot prompt. MaybeKnown: in some. WeaklyKnown: only when answers are sampled.
    Unknown: never. Writes your file with the label as a new column (mastery/labels.jsonl); DATA stays as it is.
    """
    from regrow import probing

    chosen = settings(
        recipe, set_, model__model_name_or_path=model, probe__mastery__prompts=prompts, probe__mastery__shots=shots,
        probe__mastery__samples=samples, probe__mastery__engine=engine, seed=seed,
    )  # fmt: skip
    if cost:
        print(probing.mastery_cost(chosen, data))
        return
    print(probing.mastery_with(chosen, data, output, resume=resume_mode(resume)).text())


def min_k(
    model: Model,
    data: Annotated[str, typer.Argument(help="Rows, a .txt file (a text a paragraph), questions, or a grown corpus.")],
    output: Folder = OUT,
    k: Annotated[
        float | None, typer.Option("--k", help="Share of the least likely tokens that count (default 0.2).")
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(
            help="Texts of the same kind and length that MODEL cannot have seen; without them scores are no evidence."
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="A model that has not seen the texts, for one more baseline.")
    ] = None,
    seed: Seed = None,
    resume: ResumeOption = "auto",
    recipe: RecipeFile = None,
    set_: Sets = None,
) -> None:
    """Score how likely MODEL has seen each text of DATA: Min-K%, Min-K%++ and the usual baselines.

    Higher means more likely seen. With --control the table shows how well each score tells DATA from the control
    (AUC with an interval), and texts above the control's 95 % quantile are flagged in min-k/scores.jsonl.
    """
    from regrow import probing

    chosen = settings(recipe, set_, model__model_name_or_path=model, probe__min_k__k=k, seed=seed)
    print(
        probing.min_k_with(
            chosen, data, output, control=control, reference=reference, resume=resume_mode(resume)
        ).text()
    )  # fmt: skip


def skills(
    model: Model,
    data: Annotated[str, typer.Argument(help="Rows with a `domain` column, which names the skill.")],
    output: Folder = OUT,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps on each skill (default 50).")] = None,
    method: Annotated[str | None, typer.Option(help="full or lora.")] = None,
    seed: Seed = None,
    resume: ResumeOption = "auto",
    recipe: RecipeFile = None,
    set_: Sets = None,
) -> None:
    """Learn Skill-It's graph: train MODEL a few steps on each skill of DATA alone and see whose loss falls.

    As many short trainings as there are skills; their models are thrown away. skills/graph.yaml is a recipe that
    trains with the graph.
    """
    from regrow import probing

    chosen = settings(
        recipe, set_, model__model_name_or_path=model, data__path=data, probe__skills__steps=steps,
        train__method=method, seed=seed,
    )  # fmt: skip
    print(probing.skills_with(chosen, output, resume=resume_mode(resume)).text())
