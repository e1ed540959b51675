//! The OpenAPI document, beyond the handlers' own descriptions: its subject, the authentication of callers, and the
//! problems that every call may be answered with.

use std::collections::BTreeMap;

use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{Schema, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    Components, ContentBuilder, HeaderBuilder, Info, License, OpenApi, Ref, RefOr, ResponseBuilder, Server,
};
use utoipa::{PartialSchema, ToSchema};

use crate::api::problem::PROBLEM_CONTENT_TYPE;
use crate::api::{JobEvent, Problem, Slug, schema};

const ABOUT: &str = "Jobs into a private cluster and results back, over connections that the client opens. A job is any \
    bytes; relay makes it durable, a worker runs it, and its one result waits for the client. \
    Whatever is refused is a problem document (RFC 9457) that says whether a retry is safe.";

/// Tags in the order of a client's day.
const TAGS: [(&str, &str); 4] = [
    ("submit", "Hand jobs over. Under an `Idempotency-Key` every call may be repeated."),
    ("results", "Get results: one, or all behind a cursor. Reading consumes nothing."),
    ("jobs", "Look at jobs, end them, run them again, erase them."),
    ("caller", "Who relay thinks the caller is."),
];

/// The problems that any request can have.
const OF_ALL: [Slug; 10] = [
    Slug::MalformedRequest,
    Slug::Unauthenticated,
    Slug::Forbidden,
    Slug::HeadersTooLarge,
    // A client may hold a share of what relay has, whichever call it makes.
    Slug::RateLimited,
    Slug::Internal,
    Slug::Draining,
    Slug::Overloaded,
    Slug::BrokerUnavailable,
    Slug::IssuerUnavailable,
];
/// The further problems of a call that changes something.
const OF_CHANGES: [Slug; 1] = [Slug::Unconfirmed];
/// The further problems of a body.
const OF_BODIES: [Slug; 2] = [Slug::RequestTimeout, Slug::PayloadTooLarge];
/// The further problems of a submission.
const OF_SUBMISSIONS: [Slug; 3] = [Slug::UnsupportedMediaType, Slug::IdempotencyConflict, Slug::QuotaExceeded];

/// The refusals beside that of a rerun: it is a submission without a body.
const OF_RERUNS: [Slug; 1] = [Slug::QuotaExceeded];

/// `api`, as the handlers describe it, with the rest.
pub(super) fn complete(mut api: OpenApi) -> OpenApi {
    api.info = Info::new("relay", env!("CARGO_PKG_VERSION"));
    api.info.description = Some(ABOUT.to_owned());
    let mut license = License::new("Apache-2.0");
    license.identifier = Some("Apache-2.0".to_owned());
    api.info.license = Some(license);
    api.servers = Some(vec![Server::new("/")]);
    api.tags = Some(TAGS.map(|(name, about)| TagBuilder::new().name(name).description(Some(about)).build()).to_vec());
    api.security = Some(vec![SecurityRequirement::new("key", [""; 0])]);

    let components = api.components.get_or_insert_with(Components::new);
    let key = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("a key, rlyk_<key id>_<secret>, or a token (JWT) of an issuer that this relay believes");
    let about = "An API key of role client. A development relay asks for none and takes `Relay-Client` for the name.";
    components.add_security_scheme("key", SecurityScheme::Http(key.description(Some(about)).build()));
    let mut schemas = vec![(JobEvent::name().into_owned(), JobEvent::schema())];
    schemas.push((Problem::name().into_owned(), Problem::schema()));
    JobEvent::schemas(&mut schemas);
    Problem::schemas(&mut schemas);
    // Named by headers of answers alone, which utoipa does not look into.
    schemas.push((schema::Cursor::name().into_owned(), schema::Cursor::schema()));
    components.schemas.extend(schemas);
    for (status, slugs) in by_status(Slug::ALL) {
        components.responses.insert(format!("problem-{status}"), RefOr::T(problem(&slugs)));
    }

    for (path, item) in &mut api.paths.paths {
        let reads = [&mut item.get].into_iter().flatten().map(|operation| (operation, false));
        let changes = [&mut item.post, &mut item.delete].into_iter().flatten().map(|operation| (operation, true));
        for (operation, changes) in reads.chain(changes) {
            let mut slugs = OF_ALL.to_vec();
            if path.contains('{') {
                slugs.push(Slug::NotFound);
            }
            if changes {
                slugs.extend(OF_CHANGES);
            }
            if operation.request_body.is_some() {
                slugs.extend(OF_BODIES);
            }
            match operation.operation_id.as_deref() {
                Some("submit_job" | "submit_batch") => slugs.extend(OF_SUBMISSIONS),
                Some("rerun_job") => slugs.extend(OF_RERUNS),
                _ => {}
            }
            refer_to_problems(operation, &slugs);
            for parameter in operation.parameters.iter_mut().flatten() {
                let RefOr::T(parameter) = parameter else { continue };
                parameter.schema.iter_mut().for_each(never_null);
            }
            for response in operation.responses.responses.values_mut() {
                let RefOr::T(response) = response else { continue };
                for header in response.headers.values_mut() {
                    let RefOr::T(header) = header else { continue };
                    header.schema.iter_mut().for_each(never_null);
                }
            }
        }
    }
    api
}

/// An optional parameter or header is absent, or not null.
fn never_null(schema: &mut RefOr<Schema>) {
    let RefOr::T(inner) = &mut *schema else { return };
    match inner {
        Schema::Object(object) => {
            if let SchemaType::Array(types) = &object.schema_type
                && let Some(kind) = types.iter().find(|kind| **kind != Type::Null)
            {
                object.schema_type = SchemaType::Type(kind.clone());
            }
        }
        Schema::OneOf(one_of) => {
            if let Some(first) = one_of.items.first().filter(|first| matches!(first, RefOr::Ref(_))) {
                *schema = first.clone();
            }
        }
        _ => {}
    }
}

fn by_status(slugs: &[Slug]) -> BTreeMap<u16, Vec<Slug>> {
    let mut found = BTreeMap::<_, Vec<_>>::new();
    slugs.iter().for_each(|slug| found.entry(slug.status()).or_default().push(*slug));
    found
}

/// The answer of one status, with its possible meanings.
fn problem(slugs: &[Slug]) -> utoipa::openapi::Response {
    let meanings = slugs.iter().map(|slug| format!("{}: `{slug}`, retry: `{}`", slug.title(), slug.retry().as_str()));
    let schema = Ref::from_schema_name(Problem::name());
    let content = ContentBuilder::new().schema(Some(schema)).build();
    let mut response = ResponseBuilder::new()
        .description(meanings.collect::<Vec<_>>().join(". ") + ".")
        .content(PROBLEM_CONTENT_TYPE, content);
    if slugs.iter().any(|slug| matches!(slug.status(), 429 | 503)) {
        let mut header = HeaderBuilder::new().schema(Some(u32::schema())).build();
        header.description = Some("When to try again, in seconds.".to_owned());
        response = response.header("retry-after", header);
    }
    response.build()
}

fn refer_to_problems(operation: &mut Operation, slugs: &[Slug]) {
    for status in by_status(slugs).into_keys() {
        let response = Ref::from_response_name(format!("problem-{status}"));
        operation.responses.responses.entry(status.to_string()).or_insert(RefOr::Ref(response));
    }
}
