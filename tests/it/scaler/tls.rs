//! TLS of the scaler: with the server's certificate, for callers that its own authority knows.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use relay::tls::{AuthorityFiles, ClientAuth, Secured, Tls, TlsFiles};
use relay_bridge::clock::Clock;
use rustls::ClientConfig;
use tonic::transport::{Channel, Endpoint};

use super::support::{Keda, Scaler, embedded, keda_at};
use crate::tls_support::{self, Authority, Files, Identity};

const MAIL: &[(&str, &str)] = &[("queue", "mail")];

/// A scaler with the certificate of `files` that takes callers of `authority` only.
async fn started(files: &Files, authority: &Authority) -> Scaler {
    let clock = Clock::system();
    let broker = embedded(&clock).await;
    let file = files.write("keda.pem", authority.pem());
    let authorities = vec![AuthorityFiles { file, names: Vec::new(), crl: None }];
    let tls = Tls::open(TlsFiles { authorities, ..files.files.clone() }).unwrap();
    Scaler::secured(&broker, clock, Some(Secured::scaler(tls, ClientAuth::Required))).await
}

/// Connects to the scaler.
async fn connect(scaler: &Scaler, config: Arc<ClientConfig>) -> Result<Channel, tonic::transport::Error> {
    let address = scaler.address;
    let connect = tower::service_fn(move |_: tonic::codegen::http::Uri| {
        let config = Arc::clone(&config);
        async move { tls_support::connect(address, &config).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connect).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_with_a_certificate_of_the_scalers_authority_is_answered_over_http_2() {
    let (files, authority) = (Files::new(), Authority::new("keda"));
    let scaler = started(&files, &authority).await;
    let config = files.client(&["h2"], Some(&authority.signs(&["keda.example"], 7)));
    let keda = Keda(connect(&scaler, config).await.unwrap());
    assert!(!keda.is_active(MAIL).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_answered() {
    let (files, authority) = (Files::new(), Authority::new("keda"));
    let scaler = started(&files, &authority).await;
    let stranger = Authority::new("somebody").signs(&["keda.example"], 7);
    for client in [None::<&Identity>, Some(&stranger)] {
        let refused = match connect(&scaler, files.client(&["h2"], client)).await {
            Ok(channel) => Keda(channel).is_active(MAIL).await.is_err(),
            Err(_) => true,
        };
        assert!(refused, "{}", client.is_some());
    }
    let other = files.client(&["http/1.1"], Some(&authority.signs(&["keda.example"], 8)));
    assert!(connect(&scaler, other).await.is_err(), "gRPC is HTTP/2");
    let plain = match keda_at(&scaler.address.to_string()).await {
        Ok(keda) => keda.is_active(MAIL).await.is_err(),
        Err(_) => true,
    };
    assert!(plain, "clear text is not taken");
}
