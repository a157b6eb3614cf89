"""Every check, from beginning to end: the one place where the steps follow each other."""

from siglip_ref.check.engine.case import program_of
from siglip_ref.check.engine.coverage import in_the_catalogue
from siglip_ref.check.engine.subject import Answer, C, Subject
from siglip_ref.report.data import Case, Report


def check(subject: Subject[C]) -> Report:
    """Run, compare, try other conventions, explain, count what would have been seen, keep the worst, report."""
    compared = subject.compare()
    judged = subject.judge(compared)
    answer: Answer[C] = Answer([], judged.verdict)
    if judged.verdict != "NOT JUDGED":
        other = next(subject.others(compared), None)
        if other is not None:
            answer = other
        elif judged.verdict == "FAIL":
            answer = subject.explain(compared)
    shown = answer.compared or compared
    unjudged = subject.judge(shown).unjudged if answer.verdict == "NOT JUDGED" else None
    sight = subject.count(shown)
    report = Report(
        subject.title(shown),
        answer.verdict,
        subject.rows(shown),
        answer.findings,
        details=shown.details,
        sight=sight,
        edits=subject.edits(shown) if answer.verdict == "PASS" else None,
        blind=in_the_catalogue(sight.blind) if sight else [],
        unjudged=unjudged,
    )
    subject.tell(shown, report)
    worst = subject.worst(shown, report)
    if worst:
        report.case = Case(dict(worst.arrays), program_of(report, worst.row, worst.again))
    return report
