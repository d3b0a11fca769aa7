"""What kind of model a folder holds, by its config.json and modules: what it answers with, and its labels."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tei_engine.errors import StartError
from tei_engine.graph.families import FAMILIES, Family
from tei_engine.graph.heads import Classification, Pooling
from tei_engine.graph.sizes import activation_of

_POOLINGS = {"cls": Pooling.CLS, "mean": Pooling.MEAN}


class Kind(enum.Enum):
    """What a model answers with."""

    EMBEDDING = "embedding"
    CLASSIFIER = "classifier"
    RERANKER = "reranker"
    SPLADE = "splade"


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a classifier or reranker: `names` by place in the logits, the maps as `/info` shows them."""

    names: tuple[str, ...]
    id2label: Mapping[str, str]
    label2id: Mapping[str, int]


def architecture_of(config: Mapping[str, Any]) -> str:
    """The architecture that config.json names first, empty if it names none."""
    return next(iter(_architectures(config)), "")


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether config.json names an architecture with a classification head.

    Raises StartError if that head is for anything but whole texts.
    """
    name = _classification_of(config)
    if name and not name.endswith("ForSequenceClassification"):
        raise _not_a_classifier(name)
    return bool(name)


def check_splade(config: Mapping[str, Any]) -> None:
    """Raise StartError unless config.json names an architecture with a masked-LM head."""
    names = _architectures(config)
    if not any(name.endswith("MaskedLM") for name in names):
        found = ", ".join(names) or "none"
        raise StartError(f"splade pooling needs a masked-LM architecture, config.json names {found}")


def check_vocabulary(config: Mapping[str, Any], family: Family) -> None:
    """Raise StartError unless the masked-LM head is one that is built here."""
    if family.vocabulary is None:
        known = _listed(name for name, one in FAMILIES.items() if one.vocabulary)
        raise StartError(f"{architecture_of(config)} is not supported; splade pooling is, for {known}")


def read_labels(config: Mapping[str, Any]) -> Labels:
    """The labels of a classifier; those without a name are called LABEL_<i>, as elsewhere."""
    given = config.get("id2label")
    if given is None:
        count = config.get("num_labels", 2)
        given = {str(number): f"LABEL_{number}" for number in range(count if isinstance(count, int) else 0)}
    if not isinstance(given, dict) or not given:
        raise StartError(f"config.json: id2label is {given!r}, expected labels by their number")
    id2label = {str(number): str(name) for number, name in given.items()}
    names = tuple(id2label.get(str(number), f"LABEL_{number}") for number in range(len(id2label)))
    label2id = config.get("label2id")
    if not isinstance(label2id, dict):
        label2id = {name: number for number, name in enumerate(names)}
    return Labels(names, id2label, {str(name): number for name, number in label2id.items()})


def read_classification(config: Mapping[str, Any], family: Family, labels: Labels) -> Classification:
    """The sequence classification head. Raises StartError where config.json asks for one that is not built."""
    names = family.classifier
    if names is None:
        raise _not_a_classifier(_classification_of(config))
    if not names.is_configured:
        return Classification(len(labels.names), Pooling.CLS, names.activation, dense_bias=True)
    pooling = config.get("classifier_pooling", "cls")
    if pooling not in _POOLINGS:
        raise StartError(f"config.json: classifier_pooling {pooling!r} is not supported (cls and mean are)")
    return Classification(
        len(labels.names),
        _POOLINGS[pooling],
        activation_of(config, "classifier_activation"),
        dense_bias=bool(config.get("classifier_bias")),
    )


def _classification_of(config: Mapping[str, Any]) -> str:
    """The first architecture with a classification head; empty if there is none."""
    return next((name for name in _architectures(config) if name.endswith("Classification")), "")


def _not_a_classifier(name: str) -> StartError:
    known = _listed(name for name, one in FAMILIES.items() if one.classifier)
    return StartError(f"{name} is not supported; sequence classification is, for {known}")


def _architectures(config: Mapping[str, Any]) -> list[str]:
    names = config.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
