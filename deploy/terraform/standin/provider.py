"""A stand-in for the AWS provider, which no registry brings to a machine without the internet: Terraform's plugin protocol, version 6.

It knows the names and types of schema.json, so that Terraform itself refuses a misspelt argument, a missing one, and a value of another
type. It creates nothing: what AWS would answer is made up from a hash, the same for the same input. Data sources answer from the file
that STANDIN_WORLD names, and refuse whatever is not in it. It does not know AWS's rules: two arguments that exclude each other, or a port
that a load balancer does not take, pass here.
"""

import hashlib
import json
import os
import pathlib
import sys

import msgpack
import tf.provider
import tf.runner
from tf.gen import tfplugin_pb2 as pb
from tf.gen import tfplugin_pb2_grpc as rpc

HERE = pathlib.Path(__file__).resolve().parent
SCHEMAS = json.loads((HERE / "schema.json").read_text())["provider_schemas"]["registry.terraform.io/hashicorp/aws"]
RESOURCES, SOURCES = SCHEMAS["resource_schemas"], SCHEMAS["data_source_schemas"]
# The arguments of the provider itself that the examples use.
PROVIDER = {
    "attributes": {
        "region": {"type": "string", "optional": True},
        "profile": {"type": "string", "optional": True},
        "allowed_account_ids": {"type": ["set", "string"], "optional": True},
    },
    "block_types": {
        "default_tags": {
            "nesting_mode": "list",
            "max_items": 1,
            "block": {"attributes": {"tags": {"type": ["map", "string"], "optional": True}}},
        },
    },
}
UNKNOWN = msgpack.ExtType(0, b"\x00")
NESTING = {"single": pb.Schema.NestedBlock.SINGLE, "list": pb.Schema.NestedBlock.LIST, "set": pb.Schema.NestedBlock.SET}
# How ids of AWS begin; other resources have the name of their kind in front.
ID_BEGINS = {
    "aws_security_group": "sg-",
    "aws_vpc_endpoint": "vpce-",
    "aws_vpc_endpoint_service": "vpce-svc-",
    "aws_vpc_security_group_egress_rule": "sgr-",
    "aws_vpc_security_group_ingress_rule": "sgr-",
}


def block_pb(block):
    attributes = [
        pb.Schema.Attribute(
            name=name,
            type=json.dumps(said["type"]).encode(),
            required=said.get("required", False),
            optional=said.get("optional", False),
            computed=said.get("computed", False),
        )
        for name, said in sorted(block.get("attributes", {}).items())
    ]
    blocks = [
        pb.Schema.NestedBlock(
            type_name=name,
            block=block_pb(said["block"]),
            nesting=NESTING[said["nesting_mode"]],
            min_items=said.get("min_items", 0),
            max_items=said.get("max_items", 0),
        )
        for name, said in sorted(block.get("block_types", {}).items())
    ]
    return pb.Schema.Block(attributes=attributes, block_types=blocks)


def schema_pb(block):
    return pb.Schema(version=0, block=block_pb(block))


def read(value):
    return msgpack.unpackb(value.msgpack, raw=False, strict_map_key=False) if value.msgpack else json.loads(value.json or b"null")


def written(value):
    return pb.DynamicValue(msgpack=msgpack.packb(value))


def is_unknown(value):
    return isinstance(value, msgpack.ExtType)


def through(block, value, decide):
    """`value` with every attribute that the provider computes replaced by `decide(name, attribute, value)`, in inner blocks as well."""
    whole = dict(value)
    for name, said in block.get("attributes", {}).items():
        if said.get("computed"):
            whole[name] = decide(name, said, value.get(name))
    for name, said in block.get("block_types", {}).items():
        inner = value.get(name)
        if isinstance(inner, list):
            whole[name] = [through(said["block"], item, decide) for item in inner]
        elif isinstance(inner, dict):
            whole[name] = through(said["block"], inner, decide)
    return whole


def planned(block, proposed):
    return through(block, proposed, lambda _name, _said, value: UNKNOWN if value is None else value)


class Account:
    """One configured provider: an account and a region of the world."""

    def __init__(self):
        path = os.environ.get("STANDIN_WORLD")
        self.world = json.loads(pathlib.Path(path).read_text()) if path else {}
        self.region, self.number = "eu-central-1", "000000000000"

    def configure(self, config):
        self.region = config.get("region") or self.region
        self.number = self.world.get("accounts", {}).get(config.get("profile") or "", self.number)

    def made(self, kind, name, said, digest, given):
        """A value for attribute `name` of a resource whose arguments hash to `digest`."""
        identity = ID_BEGINS.get(kind, kind + "-") + digest[:17]
        by_name = {
            "account_id": self.number,
            "arn": f"arn:aws:standin:{self.region}:{self.number}:{kind}/{digest[:16]}",
            "arn_suffix": f"net/{given.get('name') or kind}/{digest[:16]}",
            "id": identity,
            "region": self.region,
            "service_name": f"com.amazonaws.vpce.{self.region}.{identity}",
            "state": "available",
        }
        if name in by_name and said["type"] == "string":
            return by_name[name]
        return self.of_type(said["type"], f"{name}-{digest[:8]}")

    def of_type(self, kind, text):
        if isinstance(kind, str):
            return {"string": text, "number": 1, "bool": False}[kind]
        if kind[0] == "map":
            return {}
        if kind[0] == "object":
            return {name: self.of_type(inner, f"{name}-{text}") for name, inner in kind[1].items()}
        return [self.of_type(kind[1], text)]

    def created(self, kind, plan):
        digest = hashlib.sha256(repr((kind, self.number, sorted(plan.items(), key=lambda item: item[0]))).encode()).hexdigest()
        block = RESOURCES[kind]["block"]
        return through(block, plan, lambda name, said, value: self.made(kind, name, said, digest, plan) if is_unknown(value) else value)

    def looked_up(self, kind, config):
        """The answer of a data source, or nothing where the world has no such thing."""
        for thing in self.world.get(kind, []):
            if thing.get("account", self.number) != self.number:
                continue
            if any(config.get(name) != value for name, value in thing.get("match", {}).items()):
                continue
            answer = {**thing["answer"]}
            if kind in ("aws_region", "aws_caller_identity"):
                answer = {"region": self.region, "name": self.region, "account_id": self.number, **answer}
            block = SOURCES[kind]["block"]
            digest = hashlib.sha256(repr((kind, sorted(answer))).encode()).hexdigest()

            def decide(name, said, value):
                if name in answer:
                    return answer[name]
                return self.made(kind, name, said, digest, {}) if value is None else value

            return through(block, config, decide)
        return None


class StandIn(rpc.ProviderServicer):
    """Answers Terraform. Calls that are not here are answered `unimplemented`, which Terraform takes for "does not have it"."""

    def __init__(self, _provider):
        self.account = Account()

    def GetProviderSchema(self, _request, _context):
        return pb.GetProviderSchema.Response(
            provider=schema_pb(PROVIDER),
            resource_schemas={name: schema_pb(said["block"]) for name, said in RESOURCES.items()},
            data_source_schemas={name: schema_pb(said["block"]) for name, said in SOURCES.items()},
        )

    def ValidateProviderConfig(self, _request, _context):
        return pb.ValidateProviderConfig.Response()

    def ValidateResourceConfig(self, _request, _context):
        return pb.ValidateResourceConfig.Response()

    def ValidateDataResourceConfig(self, _request, _context):
        return pb.ValidateDataResourceConfig.Response()

    def ConfigureProvider(self, request, _context):
        self.account.configure(read(request.config))
        return pb.ConfigureProvider.Response()

    def UpgradeResourceState(self, request, _context):
        return pb.UpgradeResourceState.Response(upgraded_state=written(json.loads(request.raw_state.json)))

    def ReadResource(self, request, _context):
        return pb.ReadResource.Response(new_state=request.current_state)

    def PlanResourceChange(self, request, _context):
        proposed = read(request.proposed_new_state)
        if proposed is None:
            return pb.PlanResourceChange.Response(planned_state=request.proposed_new_state)
        return pb.PlanResourceChange.Response(planned_state=written(planned(RESOURCES[request.type_name]["block"], proposed)))

    def ApplyResourceChange(self, request, _context):
        plan = read(request.planned_state)
        if plan is None:
            return pb.ApplyResourceChange.Response(new_state=request.planned_state)
        return pb.ApplyResourceChange.Response(new_state=written(self.account.created(request.type_name, plan)))

    def ReadDataSource(self, request, _context):
        config = read(request.config)
        answer = self.account.looked_up(request.type_name, config)
        if answer is None:
            asked = {name: value for name, value in config.items() if value}
            refusal = pb.Diagnostic(severity=pb.Diagnostic.ERROR, summary=f"the world has no {request.type_name} for {asked}")
            return pb.ReadDataSource.Response(diagnostics=[refusal])
        return pb.ReadDataSource.Response(state=written(answer))

    def StopProvider(self, _request, _context):
        return pb.StopProvider.Response()


class Name:
    def full_name(self):
        return "registry.terraform.io/hashicorp/aws"


if __name__ == "__main__":
    # The package's own server, certificate and handshake, with this servicer in place of the package's.
    tf.provider.ProviderServicer = StandIn
    tf.runner.run_provider(Name(), sys.argv)
