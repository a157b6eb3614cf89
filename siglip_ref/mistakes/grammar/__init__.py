"""One grammar of single edits, for the diagnosis and for the mutation score.

The catalogue lists what went wrong in public programs. This lists nothing: it walks through the expressions of a
function of the specification and changes one of them: a term or a factor dropped, a sign, another tensor, another axis,
a mean for a sum, a function left out, something transposed, reversed or scaled. `forms` has the rules. `places` writes
each edit into the text, as those of the catalogue are: a score counts which of them a check sees. `switched` puts all
edits of a function into one program, behind a question each, to be tried by the hundred against another program;
`scope` adds to the rules what only such a search needs. What results need not run.
"""
