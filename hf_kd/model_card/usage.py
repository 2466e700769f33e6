"""The card's first question: how the model is loaded and asked. Every snippet runs as it stands."""

from typing import Any

from ..adapter_files import MERGED, ON_HUB
from ..functional import MULTI_LABEL
from .record import RunRecord


def usage(run: RunRecord, location: str, revision: str | None = None, *, on_hub: bool = False) -> str:
    """The section's text.

    Args:
        run: The run that the card is of.
        location: A repository or a folder.
        revision: A branch of the repository.
        on_hub: Whether `location` is a repository: of an adapter student, the plain one is at its top.
    """
    plain = location if on_hub or not (run.adapter and run.merged) else f"{location}/{MERGED}"
    parts = [_block(snippet(run, plain, revision))]
    if run.code.get("carried"):
        needs = [f"`{name}`" for name in run.code.get("imports") or []]
        also = f" It imports {', '.join(needs)}, which must be installed." if needs else ""
        parts.append(
            f"The model's class is not one of `transformers`: its code lies beside the weights, and runs on your "
            f"machine when the model is loaded. Read it first.{also}{_installed(run)}"
        )
    elif run.code.get("package"):
        installed = f"`{run.code['package']}` {run.code.get('version') or ''}".strip()
        parts.append(f"The model's class is not one of `transformers`: it comes with the package {installed}.")
    if run.adapter and run.merged:
        parts.append(_adapter(run, location, revision, on_hub))
    return "\n\n".join(parts)


def _installed(run: RunRecord) -> str:
    """That this package knows the model's class itself, if it does."""
    if not str(run.code.get("module")).startswith("hf_kd."):
        return ""
    return (
        " Where `hf_kd` is installed, `import hf_kd` and leave out `trust_remote_code=True`: it has the class itself."
    )


def _block(code: str) -> str:
    return f"```python\n{code}\n```"


def _place(location: str, revision: str | None, more: str = "") -> str:
    """A location as arguments of `from_pretrained`."""
    return _quoted(location) + more + (f', revision="{revision}"' if revision else "")


def _quoted(text: str) -> str:
    return repr(text).replace("'", '"')


def _task(run: RunRecord) -> tuple[str, str]:
    """The Hub's name of the task, and the Auto class."""
    task = run.pipeline_tag or "text-classification"
    image = task == "image-classification"
    return task, "AutoModelForImageClassification" if image else "AutoModelForSequenceClassification"


def _trust(run: RunRecord) -> str:
    return ", trust_remote_code=True" if run.code.get("carried") else ""


def _adapter(run: RunRecord, location: str, revision: str | None, on_hub: bool) -> str:
    """How the adapter is put on its base, for those who have several of one base."""
    where = f"in `{ON_HUB}/`" if on_hub else "in the folder itself"
    head = f"This is the whole student. The adapter alone, which was trained, lies {where}"
    base = run.adapter.get("base_model_name_or_path")
    if not base or (on_hub and run.student.get("local")):
        return f"{head}, for those who have its base model, which is not on the Hub."
    _, auto = _task(run)
    trust = _trust(run)
    folder = f', subfolder="{ON_HUB}"' if on_hub else ""
    plain = location if on_hub else f"{location}/{MERGED}"
    return f"{head}:\n\n" + _block(
        f"from peft import PeftModel\nfrom transformers import AutoConfig, {auto}\n\n"
        f"config = AutoConfig.from_pretrained({_place(plain, revision)}{trust})\n"
        f"base = {auto}.from_pretrained(\n"
        f"    {_place(base, run.student.get('commit'))}, config=config, ignore_mismatched_sizes=True{trust}\n"
        f")\nmodel = PeftModel.from_pretrained(base, {_place(location, revision, folder)})"
    )


def snippet(run: RunRecord, location: str, revision: str | None = None) -> str:
    """Python that loads the model and asks it; it runs as it stands."""
    where = _place(location, revision)
    task, auto = _task(run)
    trust = _trust(run)
    if run.adapter and not run.merged:
        base = _place(str(run.adapter.get("base_model_name_or_path")), run.student.get("commit"))
        classes = run.student.get("num_labels")
        head = f", num_labels={classes}, ignore_mismatched_sizes=True" if classes else ""
        return (
            f"from peft import PeftModel\nfrom transformers import {auto}\n\n"
            f"base = {auto}.from_pretrained({base}{head}{trust})\nmodel = PeftModel.from_pretrained(base, {where})"
        )
    imports, load = "from transformers import pipeline\n\n", f'classifier = pipeline("{task}", model={where}{trust})\n'
    if not trust and run.code.get("package"):
        imports, load = _from_package(run, task, where, location)
    if task == "image-classification":
        return _image(run, where, imports, load, auto, trust)
    pair = isinstance(run.data.get("text_column"), list) and len(run.data["text_column"]) == 2
    text = '{"text": "One sentence.", "text_pair": "Another one."}' if pair else '"Your text."'
    every = ", top_k=None" if run.config.get("problem_type") == MULTI_LABEL else ""
    return f"{imports}{load}print(classifier({text}{every}))"


def _from_package(run: RunRecord, task: str, where: str, location: str) -> tuple[str, str]:
    """Imports and loading of a class that an installed package has."""
    name, module = run.code["class"], run.code["module"]
    processor = "image_processor" if task == "image-classification" else "tokenizer"
    imports = f"from transformers import pipeline\nfrom {module} import {name}  # of {run.code['package']}\n\n"
    load = f"model = {name}.from_pretrained({where})\n"
    return imports, f'{load}classifier = pipeline("{task}", model=model, {processor}={_quoted(location)})\n'


def _image(run: RunRecord, where: str, imports: str, load: str, auto: str, trust: str) -> str:
    size: Any = run.config.get("image_size") or 224
    height, width = size if isinstance(size, list) else (size, size)
    if run.config.get("num_channels") == 1 and "from_pretrained" not in load:  # the pipeline makes every picture RGB
        return (
            f"import torch\nfrom PIL import Image\nfrom transformers import AutoImageProcessor, {auto}\n\n"
            f"processor = AutoImageProcessor.from_pretrained({where})\n"
            f"model = {auto}.from_pretrained({where}{trust})\n"
            f'image = Image.new("L", ({width}, {height}))  # your picture, in grey\n'
            'with torch.no_grad():\n    logits = model(**processor(image, return_tensors="pt")).logits\n'
            "print(model.config.id2label[logits.argmax(-1).item()])"
        )
    return (
        f"from PIL import Image\n{imports}{load}"
        f'image = Image.new("RGB", ({width}, {height}))  # your picture, or a path or address of one\n'
        "print(classifier(image))"
    )
