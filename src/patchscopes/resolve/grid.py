"""The resolved grid: points (source, position), targets (inspection prompts), and how a request is made of them."""

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace

from patchscopes.analysis.matching import leaked
from patchscopes.errors import CandidateError, ContextLengthError, PositionError, VocabularyError
from patchscopes.mappings import Transfer
from patchscopes.models import Model
from patchscopes.plan import states_of
from patchscopes.prompts import Target, Tokenized, continuation, resolve_mask
from patchscopes.prompts.tokens import check_rows
from patchscopes.spec import Cell, Ids, InspectionPrompt, Own, Request, Site, State, Status, Sweep, Vector, Write

Answers = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One place to read a state from: a token of a source, with what belongs to it.

    `phrase` are the characters of the phrase that marks the token, None where it was named by itself. `expect` and
    `candidates` are the source's, or the call's. `item` and `kind` are the source's. No later token attends
    to `masked`.
    """

    source_index: int
    tokenized: Tokenized
    position: int
    expect: Answers
    _: KW_ONLY
    phrase: tuple[int, int] | None = None
    candidates: Answers = ()
    item: str | None = None
    kind: str | None = None
    masked: tuple[int, ...] = ()

    @property
    def token(self) -> str:
        """The token that is read, as it stands in the text."""
        return self.tokenized.tokens[self.position]

    @property
    def text(self) -> str:
        """The source text from its start to the end of this token, without special tokens and outer spaces."""
        return self._plain(0, len(self.tokenized.text_until(self.position)))

    @property
    def marked(self) -> str:
        """The phrase that marks this token, else what it covers itself, without special tokens and outer spaces."""
        return self._plain(*(self.phrase or self.tokenized.spans[self.position]))

    def _plain(self, start: int, end: int) -> str:
        """The characters from `start` to `end`, without special tokens and outer spaces."""
        kept = self.tokenized.text
        pairs = list(zip(self.tokenized.spans, self.tokenized.special, strict=True))
        for (first, last), is_special in reversed(pairs):
            if is_special and start <= first and last <= end:
                kept, end = kept[:first] + kept[last:], end - (last - first)
        return kept[start:end].strip()

    def flags(self) -> Iterator[str]:
        """What makes the state of this token special (rule 6)."""
        if not self.tokenized.has_bos and set(range(self.position)) <= set(self.masked):
            yield "sink"
        if self.tokenized.special[self.position]:
            yield "special"

    def state(self, layer: int) -> State:
        """The hidden state of this token at `layer`."""
        return State(self.tokenized.ids, self.position, layer, self.masked)


@dataclass(frozen=True, slots=True)
class Variant:
    """Which of the requests at one place of the grid: a control (None for the cell itself), its draw, the sample.

    `candidates` are those that a control without a source scores.
    """

    control: str | None = None
    draw: int = 0
    sample: int = 0
    candidates: Answers = ()


@dataclass(frozen=True, slots=True)
class _Common:
    """What all requests at one point and target have in common."""

    candidates: Answers
    expect: Answers
    flags: tuple[str, ...]
    reached: bool  # whether a write at the last layer reaches what is read
    baseline: Cell | None  # what candidates are compared with
    compare: State | None  # what a next token is compared with


@dataclass(frozen=True, slots=True)
class Grid:
    """A sweep with everything looked up. `identity` and `dtype` are those of the target model.

    `prompts` are all inspection prompts that are in use, each once: those of the call, where a source has none of its
    own, then the sources' own.
    """

    transfer: Transfer
    sweep: Sweep
    points: tuple[Point, ...]
    prompts: Mapping[InspectionPrompt, Target]
    identity: str
    dtype: str
    source_model: str | None
    compares: bool
    _commons: dict[tuple[object, ...], _Common] = field(default_factory=dict, compare=False, repr=False)
    _written: dict[int, list[Point]] = field(default_factory=dict, compare=False, repr=False)
    _answers: dict[tuple[Ids, Answers], tuple[Ids, ...]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        transfer: Transfer,
        sweep: Sweep,
        points: tuple[Point, ...],
        prompts: Mapping[InspectionPrompt, Target],
    ) -> "Grid":
        """The grid of these points and inspection prompts."""
        target = transfer.target
        source_model = None if transfer.within else transfer.source.identity
        # A distribution over another vocabulary has nothing to compare with.
        compares = sweep.readout.kind == "next-token" and (transfer.within or _same_vocabulary(transfer))
        return cls(transfer, sweep, points, prompts, target.identity, target.dtype_name, source_model, compares)

    @property
    def model(self) -> Model:
        """The target model, which runs the inspection prompts."""
        return self.transfer.target

    @property
    def targets(self) -> tuple[Target, ...]:
        """All inspection prompts, each once."""
        return tuple(self.prompts.values())

    def targets_of(self, point: Point) -> tuple[Target, ...]:
        """The inspection prompts of a source."""
        own = self.sweep.sources[point.source_index].prompt
        asked = (own,) if isinstance(own, InspectionPrompt) else self.sweep.prompts
        return tuple(self.prompts[prompt] for prompt in asked)

    def points_of(self, target: Target) -> list[Point]:
        """The points that are written into `target`."""
        if not self._written:
            for point in self.points:
                for one in self.targets_of(point):
                    self._written.setdefault(id(one), []).append(point)
        return self._written.get(id(target), [])

    @property
    def samples(self) -> range:
        """The samples of each cell."""
        return range(self.sweep.n_samples)

    def candidate_sets(self, target: Target) -> tuple[Answers, ...]:
        """What points score in `target`, each set once, in whatever order a point has it; () alone for nothing."""
        found: dict[frozenset[str], Answers] = {}
        for point in self.points_of(target):
            found.setdefault(frozenset(point.candidates), point.candidates)
        return tuple(found.values())

    def mapping(self, layers: tuple[int | None, int | None], vectors: tuple[Vector, ...]) -> str | None:
        """The digest of the mapping that `vectors` go through between `layers`, (ℓ, ℓ*); None for none."""
        source_layer, target_layer = layers
        mappings = self.transfer.mappings
        if mappings is None or source_layer is None or target_layer is None or isinstance(vectors[0], Own):
            return None
        return mappings[source_layer, target_layer].digest

    def request(
        self,
        target: Target,
        vectors: tuple[Vector, ...],
        layers: tuple[int | None, int],
        variant: Variant,
        *,
        point: Point | None = None,
    ) -> Request:
        """A request that writes `vectors` over the placeholders of `target`; `layers` are (ℓ, ℓ*)."""
        source_layer, target_layer = layers
        write = Write(Site(target_layer), target.positions, vectors)
        common = self._common(target, point, variant)
        mapping = self.mapping(layers, vectors)
        status: Status = "ok"
        reason = None
        if target_layer == self.model.n_layers and not common.reached:
            status = "inert"
            reason = (
                f"a write at the last layer ({target_layer}) reaches only its own position, and the text is read at "
                f"position {len(target.tokenized.ids) - 1}"
            )
        return Request(
            target.prompt.label,
            self.written(target, write, common, mapping, sample=variant.sample),
            point.tokenized.text if point is not None else None,
            point.source_index if point is not None else None,
            point.position if point is not None else None,
            point.token if point is not None else None,
            source_layer,
            target_layer,
            target.positions,
            variant.control,
            variant.draw,
            variant.sample,
            common.expect,
            common.flags,
            status,
            reason,
            common.candidates,
            baseline=common.baseline,
            mapping=None if mapping is None else self.label(layers),
        )

    def label(self, layers: tuple[int | None, int | None]) -> str | None:
        """What a row calls the mapping between `layers`."""
        source_layer, target_layer = layers
        mappings = self.transfer.mappings
        if mappings is None or source_layer is None or target_layer is None:
            return None
        return mappings.label((source_layer, target_layer))

    def unwritten(self, target: Target, tokenized: Tokenized, variant: Variant, *, point: Point | None) -> Request:
        """A request that runs `tokenized` and writes nothing."""
        what = f"{variant.control} for prompt {target.prompt.label!r}"
        try:
            check_rows(self.model, tokenized)
            common = self._common(target, point, variant)
            cell = self.cell(target, tokenized, common.candidates, sample=variant.sample)
            self.model.check_length(len(tokenized.ids), cell.more_tokens, what, masked=bool(cell.masked))
            of_source = None if common.compare is None else self.source_model
            cell = replace(cell, compare=common.compare, source_model=of_source)
        except (ContextLengthError, CandidateError, PositionError, VocabularyError) as error:
            return self.unresolvable(target, variant, point=point, reason=str(error))
        return self._request(target, cell, variant, point)

    def unresolvable(self, target: Target, variant: Variant, *, point: Point | None, reason: str) -> Request:
        """A request that cannot be run, with the reason."""
        return replace(self._request(target, None, variant, point), status="failed", reason=reason)

    def cell(self, target: Target, tokenized: Tokenized, candidates: Answers, *, sample: int = 0) -> Cell:
        """The computation on `tokenized` without a write, as this sweep reads and decodes it."""
        sweep, answers = self.sweep, self.answers(target, tokenized, candidates)
        masked = target.masked
        if masked and tokenized is not target.tokenized:  # another text stands in the placeholder's stead
            masked = resolve_mask(self.model, tokenized, str(target.prompt.mask))
        return Cell(
            self.identity,
            self.dtype,
            tokenized.ids,
            None,
            sweep.readout,
            sweep.decoding,
            sample,
            answers,
            masked=masked,
        )

    def written(self, target: Target, write: Write, common: _Common, mapping: str | None, *, sample: int) -> Cell:
        """The computation on `target` with `write`."""
        sweep, tokenized = self.sweep, target.tokenized
        theirs = any(states_of(vector) and not isinstance(vector, Own) for vector in write.vectors)
        of_source = self.source_model if theirs or common.compare is not None else None
        return Cell(
            self.identity,
            self.dtype,
            tokenized.ids,
            write,
            sweep.readout,
            sweep.decoding,
            sample,
            self.answers(target, tokenized, common.candidates),
            of_source,
            mapping,
            target.masked,
            common.compare,
        )

    def answers(self, target: Target, tokenized: Tokenized, candidates: Answers) -> tuple[Ids, ...]:
        """The ids of each candidate as it continues `tokenized`. Raises CandidateError where one does not."""
        if not candidates:
            return ()
        key = tokenized.ids, candidates
        if key not in self._answers:
            self._answers[key] = tuple(
                continuation(self.model, tokenized, candidate, chat=target.prompt.chat, bos=self.sweep.bos)
                for candidate in candidates
            )
        return self._answers[key]

    def _request(self, target: Target, cell: Cell | None, variant: Variant, point: Point | None) -> Request:
        """A request without a write."""
        common = self._common(target, point, variant)
        request = Request(
            target.prompt.label,
            cell,
            control=variant.control,
            draw=variant.draw,
            sample=variant.sample,
            expect=common.expect,
            flags=tuple(flag for flag in common.flags if flag != "target-sink"),
            candidates=common.candidates,
            baseline=common.baseline,
        )
        if point is None:
            return request
        return replace(
            request,
            source=point.tokenized.text,
            source_index=point.source_index,
            position=point.position,
            token=point.token,
        )

    def _common(self, target: Target, point: Point | None, variant: Variant) -> _Common:
        place = variant.candidates if point is None else (point.source_index, point.position)
        key = point is None, place, id(target)
        if key not in self._commons:
            candidates = variant.candidates if point is None else point.candidates
            self._commons[key] = self._find_common(target, point, candidates)
        return self._commons[key]

    def _find_common(self, target: Target, point: Point | None, candidates: Answers) -> _Common:
        expect = point.expect if point is not None else self._shared_expectation(target)
        flags = tuple(point.flags()) if point is not None else ()
        shown = point.text if point is not None else ""
        if expect and leaked(expect, prompt=target.tokenized.text, source=shown):
            flags = (*flags, "leaked")
        hidden = set(target.masked)
        if not target.tokenized.has_bos and any(hidden.issuperset(range(place)) for place in target.positions):
            flags = (*flags, "target-sink")
        reached = len(target.tokenized.ids) - 1 in target.positions
        baseline = self.cell(target, target.tokenized, candidates) if candidates else None
        compare = point.state(self.transfer.source.n_layers) if point is not None and self.compares else None
        return _Common(candidates, expect, flags, reached, baseline, compare)

    def _shared_expectation(self, target: Target) -> tuple[str, ...]:
        """The expected answers where all sources have the same: a control without a source has none of its own."""
        expectations = {point.expect for point in self.points_of(target)}
        return expectations.pop() if len(expectations) == 1 else ()


def with_candidates(request: Request) -> Iterator[Request]:
    """A request per candidate; the request as it is where it has none to score."""
    if not request.candidates:
        yield request
        return
    for index, candidate in enumerate(request.candidates):
        yield replace(request, candidate=candidate, candidate_index=index)


def _same_vocabulary(transfer: Transfer) -> bool:
    source, target = transfer.source, transfer.target
    return source.d_vocab == target.d_vocab and source.tokenizer.get_vocab() == target.tokenizer.get_vocab()
