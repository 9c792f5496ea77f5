"""A condition on a comparison, such as 'lora.rougeLsum - original.rougeLsum > 5 @95%', read and judged.

    gate       = condition { "and" condition }
    condition  = term [ " - " term ] ( ">" | ">=" | "<" | "<=" ) points [ "@" level "%" ]
    term       = system "." measure

Points go from 0 to 100. The measure stands behind the last dot, so that a system's name may have dots, and the minus of a
difference has spaces around it, so that a name may have hyphens. With a level (90, 95 or 99) the unfavourable limit of the
interval decides: the lower one for > and >=, the upper one for < and <=. Without it the mean does.
"""

from gistmill.gate.conditions import Condition, Gate, Term
from gistmill.gate.judging import Verdict, evaluate
from gistmill.gate.parsing import parse

__all__ = ["Condition", "Gate", "Term", "Verdict", "evaluate", "parse"]
