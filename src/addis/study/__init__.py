"""Studies of papers: independent trials, claims about their results, and figures of those results."""

from addis.study._bench import Row as Row
from addis.study._bench import absent as absent
from addis.study._bench import peer_repository as peer_repository
from addis.study._bench import timed as timed
from addis.study._bench import timed_row as timed_row
from addis.study._study import Claim as Claim
from addis.study._study import Figure as Figure
from addis.study._study import Scale as Scale
from addis.study._study import Study as Study
from addis.study._study import Trial as Trial
