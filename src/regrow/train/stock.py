"""Model Stock (Jang et al. 2024, arXiv 2403.19522), done by mergekit.

Two or more fine-tunes of one base are averaged, and the average is pulled back towards the base: with the mean cosine
c between their weight changes and N of them, ``t = N c / (1 + (N - 1) c)`` and ``theta = t * mean + (1 - t) * base``,
tensor by tensor. Changes that agree are kept, changes that are noise are not.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from regrow.errors import MissingExtra, ModelError
from regrow.rows.writers import atomic_folder
from regrow.train.save import copy_companions, stored_dtype, weight_map


def model_stock(base_dir: Path, tuned_dirs: Sequence[Path], out: Path) -> Path:
    """Write the Model Stock merge of ``tuned_dirs`` with their base.

    Args:
        base_dir: Folder in HF format; gives config, tokenizer, chat template and dtype of the result.
        tuned_dirs: Two or more full fine-tunes of it.
        out: Result folder; replaced when it exists.

    Raises:
        MissingExtra: mergekit is not installed.
        ModelError: Fewer than two fine-tunes, other tensors than the base's, or mergekit refused.
    """
    if len(tuned_dirs) < 2:
        raise ModelError("Model Stock needs two or more fine-tunes", hint="regrow merge BASE TUNED TUNED ...")
    if find_spec("mergekit") is None:
        raise MissingExtra("mergekit", "merge", "Model Stock")
    names = weight_map(base_dir).keys()
    for folder in tuned_dirs:
        if odd := sorted(names ^ weight_map(folder).keys()):
            raise ModelError(f"{len(odd)} tensors are in one model only, such as {odd[0]}",
                             where=f"{base_dir} and {folder}",
                             hint="all must be full models of one architecture; merge an adapter first")  # fmt: skip
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    dtype = str(stored_dtype(base_dir)).removeprefix("torch.")
    config = MergeConfiguration.model_validate(
        {
            "merge_method": "model_stock",
            "base_model": str(base_dir.resolve()),
            "models": [{"model": str(folder.resolve())} for folder in tuned_dirs],
            "dtype": "float32",
            "out_dtype": dtype,
        }
    )
    options = MergeOptions(
        copy_tokenizer=False, write_model_card=False, trust_remote_code=False, safe_serialization=True, quiet=True
    )

    def write(tmp: Path) -> None:
        try:
            run_merge(config, str(tmp), options)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ModelError(f"mergekit could not merge: {error}", where=str(base_dir)) from error
        for extra in ("mergekit_config.yml", "README.md"):
            (tmp / extra).unlink(missing_ok=True)
        shutil.copyfile(base_dir / "config.json", tmp / "config.json")
        copy_companions(base_dir, tmp)

    return atomic_folder(out, write)
