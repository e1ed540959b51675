//! The cache of policies in front of a broker.

use std::time::Duration;

use relay_bridge::clock::Clock;
use relay_bridge::contract::QueueName;
use relay_bridge::policy::{QueuePolicy, change_policy};
use relay_bridge::policy_cache::PolicyCache;
use relay_embedded::{Embedded, EmbeddedConfig};

#[tokio::test]
async fn a_policy_is_asked_for_once_a_second_and_a_queue_that_is_new_at_once() {
    let clock = Clock::manual(Clock::system().now());
    let store = Embedded::open(EmbeddedConfig { clock: clock.clone(), ..EmbeddedConfig::default() }).await.unwrap();
    let broker = store.broker();
    let (cache, queue) = (PolicyCache::new(&broker, clock.clone()), "mail".parse::<QueueName>().unwrap());
    assert!(cache.get(&queue).await.unwrap().is_none());
    let attempts = async |max_attempts| {
        let change = move |policy| QueuePolicy { max_attempts, ..policy };
        change_policy(&*broker.policies, &queue, change).await.unwrap();
    };
    let known = async || cache.get(&queue).await.unwrap().unwrap().max_attempts;
    attempts(3).await;
    assert_eq!(known().await, 3, "that there was no such queue is not kept");
    attempts(4).await;
    clock.advance(Duration::from_millis(999));
    assert_eq!(known().await, 3);
    clock.advance(Duration::from_millis(1));
    assert_eq!(known().await, 4);
    store.close().await;
}

#[tokio::test]
async fn sizes_are_no_more_than_the_broker_takes() {
    let store = Embedded::open(EmbeddedConfig::default()).await.unwrap();
    let (mut broker, queue) = (store.broker(), "mail".parse::<QueueName>().unwrap());
    let change = |policy| QueuePolicy { payload_max: 700, result_max: 1_300, ..policy };
    change_policy(&*broker.policies, &queue, change).await.unwrap();
    broker.capabilities.payload_max = 1_000;
    let policy = PolicyCache::new(&broker, Clock::system()).get(&queue).await.unwrap().unwrap();
    assert_eq!((policy.payload_max, policy.result_max), (700, 1_000));
    store.close().await;
}
