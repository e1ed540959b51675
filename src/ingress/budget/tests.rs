//! Budgets of which several take, and their turns.

use super::*;

fn client(name: &str) -> Owner {
    Owner::Client(name.parse().unwrap())
}

fn budget(max: usize) -> Arc<Budget> {
    Budget::new(max, ClientShares::quarters())
}

#[test]
fn a_budget_gives_what_it_has_and_gets_back_what_it_gave() {
    let budget = Budget::new(10, ClientShares::undivided());
    let a = client("a");
    let mut share = budget.take(&a, 6).unwrap();
    assert!(budget.take(&a, 5).is_err() && budget.take(&a, u64::MAX).is_err());
    assert!(share.grow(4).is_ok() && share.grow(1).is_err());
    assert!(budget.take(&a, 0).is_ok() && budget.take(&a, 1).is_err());
    share.shrink_to(3);
    assert_eq!((share.amount(), budget.taken()), (3, 3));
    drop(share);
    assert!(budget.take(&a, 10).is_ok());
    assert_eq!((budget.taken(), budget.state().owners.len()), (0, 0), "nobody is remembered");
}

#[test]
fn a_share_is_fitted_to_what_came_as_far_as_there_is_room() {
    let budget = Budget::new(10, ClientShares::undivided());
    let (mut share, mut other) = (budget.take(&client("a"), 4).unwrap(), budget.take(&client("b"), 2).unwrap());
    share.fit(7);
    assert_eq!((share.amount(), budget.taken()), (7, 9));
    other.fit(4);
    assert_eq!(other.amount(), 2, "so much is not free");
    share.fit(1);
    assert_eq!((share.amount(), budget.taken()), (1, 3));
}

#[test]
fn a_client_has_a_quarter_and_its_first_amount_whatever_its_size() {
    let (budget, a, b) = (budget(100), client("a"), client("b"));
    let first = budget.take(&a, 60).unwrap();
    assert_eq!(budget.take(&a, 1).unwrap_err(), Full::Share(25));
    let other = budget.take(&b, 25).unwrap();
    assert_eq!(budget.take(&b, 1).unwrap_err(), Full::Share(25));
    assert_eq!(budget.take(&client("c"), 20).unwrap_err(), Full::Budget);
    drop((first, other));
    let many: Vec<_> = std::iter::from_fn(|| budget.take(&a, 5).ok()).collect();
    assert_eq!(many.len(), 5);
}

#[tokio::test]
async fn turns_go_round_by_client_however_many_of_one_wait() {
    let (budget, a, b) = (Budget::new(10, ClientShares::undivided()), client("a"), client("b"));
    let all = budget.take(&client("c"), 10).unwrap();
    let (tell, mut order) = tokio::sync::mpsc::channel(8);
    let mut tasks = tokio::task::JoinSet::new();
    for (name, owner) in [("a", &a), ("a", &a), ("a", &a), ("b", &b), ("b", &b)] {
        let (budget, owner, tell) = (Arc::clone(&budget), owner.clone(), tell.clone());
        tasks.spawn(async move {
            let share = budget.reserve(&owner, 10, None).await.unwrap();
            tell.send(name).await.unwrap();
            drop(share);
        });
        tokio::task::yield_now().await;
    }
    drop(all);
    while tasks.join_next().await.is_some() {}
    let order: Vec<_> = std::iter::from_fn(|| order.try_recv().ok()).collect();
    assert_eq!(order, ["a", "b", "a", "b", "a"]);
    assert_eq!((budget.taken(), budget.state().owners.len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_for_its_own_share_holds_nobody_up_and_is_told_which_room_was_missing() {
    let (budget, a, b) = (budget(100), client("a"), client("b"));
    let _held = budget.take(&a, 25).unwrap();
    let within = Some(Duration::from_secs(2));
    let mut waits = Box::pin(budget.reserve(&a, 5, within));
    assert!(futures_util::poll!(&mut waits).is_pending());
    let others = budget.reserve(&b, 25, within).await.unwrap();
    assert_eq!(waits.await.unwrap_err(), Full::Share(25));
    let _more = [budget.take(&client("c"), 25).unwrap(), budget.take(&client("d"), 20).unwrap()];
    assert_eq!(budget.reserve(&client("e"), 10, within).await.unwrap_err(), Full::Budget);
    drop(others);
    assert!(budget.reserve(&client("e"), 10, within).await.is_ok());
    assert!(budget.state().turns.len() <= 2, "those that left the line are forgotten with the next round");
}

#[tokio::test]
async fn what_grows_is_one_amount_and_who_waits_for_its_own_share_stops_nobody() {
    let (budget, a, b) = (budget(100), client("a"), client("b"));
    let mut first = budget.take(&a, 1).unwrap();
    first.grow(59).unwrap();
    let mut waits = Box::pin(budget.reserve(&a, 1, None));
    assert!(futures_util::poll!(&mut waits).is_pending());
    let (second, c) = (budget.take(&b, 20).unwrap(), client("c"));
    let mut short = Box::pin(budget.reserve(&c, 25, None));
    assert!(futures_util::poll!(&mut short).is_pending());
    assert_eq!(budget.take(&client("d"), 1).unwrap_err(), Full::Budget, "one waits for all that is free");
    drop(second);
    assert!(short.await.is_ok() && budget.take(&client("d"), 1).is_ok());
    drop(first);
    assert!(waits.await.is_ok());
    assert_eq!((budget.taken(), budget.state().is_short), (0, false));
}

#[tokio::test]
async fn a_call_that_is_dropped_leaves_the_line_to_the_next_one() {
    let (budget, a, b) = (Budget::new(10, ClientShares::undivided()), client("a"), client("b"));
    let all = budget.take(&client("c"), 5).unwrap();
    let mut large = Box::pin(budget.reserve(&a, 10, None));
    let mut small = Box::pin(budget.reserve(&b, 1, None));
    assert!(futures_util::poll!(&mut large).is_pending() && futures_util::poll!(&mut small).is_pending());
    drop(large);
    assert!(small.await.is_ok());
    drop(all);
    assert_eq!(budget.taken(), 0);
}
