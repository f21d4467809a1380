"""Train and evaluate: a loop that the caller owns, on one device or several, exact to resume."""

from addis.train import schedules as schedules
from addis.train._evaluate import Evaluation as Evaluation
from addis.train._evaluate import Metric as Metric
from addis.train._evaluate import evaluate as evaluate
from addis.train._loop import Epoch as Epoch
from addis.train._loop import Step as Step
from addis.train._loop import epochs as epochs
from addis.train._memory import keep_freed_memory as keep_freed_memory
from addis.train._resume import Resumable as Resumable
from addis.train._stacked import StackedScores as StackedScores
from addis.train._stacked import StackedTrainer as StackedTrainer
from addis.train._stacked_batches import StackedBatches as StackedBatches
from addis.train._stacked_state import seeded as seeded
from addis.train._steps import cross_entropy_step as cross_entropy_step
