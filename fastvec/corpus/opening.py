"""Opens the files of a corpus, and checks that they have the columns that a job needs."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from pyarrow import types

from fastvec.corpus.columns import field_at, holds_text, is_binary, is_string, path_to, plain_type
from fastvec.corpus.copies import STDIN, LocalCopy
from fastvec.corpus.formats.errors import EmptyFileError
from fastvec.corpus.formats.files import File, for_each
from fastvec.corpus.formats.json_lines import JsonLines, with_common_types
from fastvec.corpus.formats.source import Source, open_source
from fastvec.corpus.locations import find_files
from fastvec.corpus.reader import Corpus, InputFile
from fastvec.corpus.template import Template, can_render
from fastvec.corpus.text_column import columns_of, text_column
from fastvec.errors import InputError, UsageError
from fastvec.stores.address import Address

logger = logging.getLogger(__name__)


def open_corpus(
    inputs: Sequence[str | Path | LocalCopy] | str | Path,
    *,
    column: str | Sequence[str] | None = None,
    template: str | None = None,
    instruction_column: str | None = None,
    keep: Sequence[str] | None = (),
    limit: int | None = None,
    output: Path | Address | None = None,
    output_columns: Sequence[str] = (),
    check: Callable[[], None] = lambda: None,
) -> Corpus:
    """Open and check every input file, before any chunk is read.

    Args:
        inputs: One or several files, folders or glob patterns, local or in a store.
        column: The text column, or several; None chooses one by type and name.
        template: What the text is put together by, instead of a column; see `Template`.
        instruction_column: A column of instructions, one for each row's texts.
        keep: Columns to copy to the output: names, or a single name; None keeps all.
        limit: Maximum number of rows, over all files.
        output: The file that will be written; it must not be an input.
        output_columns: Its own columns; kept columns may not have these names.
        check: Called often while rows are counted, which can take minutes; it may raise to stop that.

    Raises InputError for a file or column that cannot be read, and UsageError for inputs or kept columns that conflict
    with each other or with the output.
    """
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    copies = {one.path: one for one in given if isinstance(one, LocalCopy)}
    paths = find_files([one.path if isinstance(one, LocalCopy) else one for one in given], output=output, copies=copies)
    stdin = {path for path, copy in copies.items() if copy.name == STDIN}
    local = all(isinstance(path, Path) for path in paths)
    opened = for_each(lambda path: _opened(path, text_otherwise=path in stdin, check=check), paths, local=local)
    sources = _with_rows(opened)
    templates, reason = _templates(sources[0], column, template)
    instructions = [] if instruction_column is None else [instruction_column]
    kept = sources[0].schema.names if keep is None else [keep] if isinstance(keep, str) else list(keep)
    sources = _with_common_types(sources, kept)
    kept_schema = _kept_schema(sources, kept, output_columns)
    texts = [(name, template is not None) for one in templates for name in one.columns]
    for name, in_template in [*texts, *((name, False) for name in instructions)]:
        first = _first_with_values(sources, name)
        for source in sources:
            _require_text(source, first, name, in_template=in_template)
    for source in sources:
        _require_kept(source, sources, kept_schema)
    files = _files(sources, copies, limit)
    corpus = Corpus(
        files=files,
        templates=templates,
        instruction_column=instruction_column,
        kept_schema=kept_schema,
        rows=sum(file.rows for file in files),
        column_reason=reason,
        _sources=tuple(sources),
    )
    corpus.require_readable()
    return corpus


def _opened(path: File, *, text_otherwise: bool, check: Callable[[], None]) -> Source | EmptyFileError:
    try:
        return open_source(path, text_otherwise=text_otherwise, check=check)
    except EmptyFileError as error:
        return error


def _with_rows(opened: Sequence[Source | EmptyFileError]) -> list[Source]:
    """Return the files that have a schema, and warn of the others; raise their error if there is no other."""
    sources = [one for one in opened if isinstance(one, Source)]
    empty = [one for one in opened if isinstance(one, EmptyFileError)]
    if not sources:
        raise empty[0]
    if empty:
        logger.warning("%d of %d files are empty and have no rows, e.g. %s", len(empty), len(opened), empty[0].path)
    return sources


def _templates(
    first: Source, column: str | Sequence[str] | None, template: str | None
) -> tuple[tuple[Template, ...], str]:
    """Return what each text of a row is made by, and why this column was chosen if none was given."""
    if template is not None:
        if column:
            raise UsageError("a column and a template were both given: choose one")
        return (Template.parse(template),), ""
    if not column:
        try:
            name, reason = text_column(first.schema)
        except InputError as error:
            raise InputError(f"{first.path}: {error}") from None
        return (Template.of_column(name),), reason
    names = [column] if isinstance(column, str) else list(column)
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(f"column {name!r} is given twice as a text column; give it once")
    return tuple(map(Template.of_column, names)), ""


def _with_common_types(sources: Sequence[Source], kept: Sequence[str]) -> list[Source]:
    """Return the sources; those of JSON lines, whose types come from their values, have one for each kept field."""
    files = {at: source.content for at, source in enumerate(sources) if isinstance(source.content, JsonLines)}
    if len(files) < 2:
        return list(sources)
    fields = {path[0] for name in kept for file in files.values() if (path := path_to(file.inferred, name))}
    changed = dict(zip(files, with_common_types(list(files.values()), fields), strict=True))
    return [replace(source, content=changed.get(at, source.content)) for at, source in enumerate(sources)]


def _kept_schema(sources: Sequence[Source], names: Sequence[str], taken: Sequence[str]) -> pa.Schema:
    for name, count in Counter(names).items():
        if name in taken:
            raise UsageError(f"kept column {name!r} has the name of an output column; do not keep it, or rename it")
        if count > 1:
            raise UsageError(f"column {name!r} is kept twice; give it once")
    return pa.schema([(name, _kept_type(_first_with_values(sources, name), name)) for name in names])


def _first_with_values(sources: Sequence[Source], name: str) -> Source:
    """Return the first file in which the column is not of type null, or the first file if it is null in all."""
    typed = (source for source in sources if not types.is_null(_field(source, name).type))
    return next(typed, sources[0])


def _files(sources: Sequence[Source], copies: Mapping[Path, LocalCopy], limit: int | None) -> tuple[InputFile, ...]:
    files = []
    first_row = 0
    for source in sources:
        rows = source.rows if limit is None else min(source.rows, limit - first_row)
        copy = copies.get(source.path) if isinstance(source.path, Path) else None
        uri, version = (str(source.path), source.version) if copy is None else (copy.name, copy.version)
        files.append(InputFile(uri=uri, size=source.size, version=version, first_row=first_row, rows=rows))
        first_row += rows
    return tuple(files)


def _kept_type(source: Source, name: str) -> pa.DataType:
    try:
        return plain_type(_field(source, name).type)
    except (
        TypeError,
        ValueError,
        pa.ArrowException,
    ) as error:  # ValueError: a nested name, a map of nulls
        raise InputError(f"{source.path}: column {name!r} cannot be kept: {error}") from error


def _require_text(source: Source, first: Source, column: str, *, in_template: bool) -> None:
    text, first_text = _field(source, column).type, _field(first, column).type
    if not (can_render(text) if in_template else holds_text(text)):
        expected = "text, a number, a date or a time" if in_template else "text"
        raise InputError(f"{source.path}: column {column!r} is {text}, not {expected}. {columns_of(source.schema)}")
    if (is_string(text) and is_binary(first_text)) or (is_binary(text) and is_string(first_text)):
        raise InputError(f"{source.path}: column {column!r} is {text}, but {first_text} in {first.path}")


def _require_kept(source: Source, sources: Sequence[Source], kept_schema: pa.Schema) -> None:
    for kept in kept_schema:
        type = _kept_type(source, kept.name)
        if type != kept.type and not types.is_null(type):
            first = _first_with_values(sources, kept.name)
            raise InputError(f"{source.path}: kept column {kept.name!r} is {type}, but {kept.type} in {first.path}")


def _field(source: Source, name: str) -> pa.Field:
    path = path_to(source.schema, name)
    if path is None:
        raise InputError(f"{source.path}: there is no column {name!r}. {columns_of(source.schema)}")
    return field_at(source.schema, path)
