//! Changes that a node proposes for volumes of its own: the task goes on until it is known what came of them, whoever asked.

use std::time::Duration;

use client_lib::{Error, ErrorKind};
use tokio::task::JoinHandle;

/// How long whoever asked waits until the outcome is known: longer than consensus is asked for once.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// What came of `task`, which changes `what`.
///
/// # Errors
/// Those of the task; `Unavailable` when nothing is known yet: the task goes on.
pub(super) async fn known<T>(task: JoinHandle<Result<T, Error>>, what: &str) -> Result<T, Error> {
    match tokio::time::timeout(PATIENCE, task).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => {
            Err(Error::new(ErrorKind::Internal, format!("the change of {what} ended early")).caused_by(error))
        }
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "the metadata has no quorum, so it is not known yet whether {what} will change: reads and writes go on, other changes wait. \
                 `helio status` says which nodes are missing; ask again when they are back"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_asked_is_told_that_nothing_is_known_and_the_task_goes_on() {
        let (tell, told) = tokio::sync::oneshot::channel();
        let (done, is_done) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            told.await.expect("is told");
            done.send(()).expect("is waited for");
            Ok(())
        });
        let error = known(task, "the size of volume disk").await.expect_err("nothing is known");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("whether the size of volume disk will change"), "{error}");
        tell.send(()).expect("it waits");
        is_done.await.expect("it went on");

        let refused = tokio::spawn(async { Err::<(), Error>(Error::new(ErrorKind::Busy, "not now")) });
        assert_eq!(known(refused, "it").await.expect_err("refused").kind(), ErrorKind::Busy);
    }
}
