# Relay in one account, a client in another: the address of each part is given to the next by Terraform. Two applies where acceptance is
# required: the first makes the endpoint, which waits; the second accepts it.

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.25, < 7"
    }
  }
}

provider "aws" {
  alias               = "relay"
  region              = "eu-central-1"
  profile             = "relay"
  allowed_account_ids = ["111111111111"]
}

provider "aws" {
  alias               = "shop"
  region              = "eu-central-1"
  profile             = "shop"
  allowed_account_ids = ["222222222222"]
}

variable "accepted_endpoints" {
  description = "The clients' endpoints that are accepted; the second apply names that of the output endpoint_id."
  type        = set(string)
  default     = []
}

module "provider" {
  source    = "../../provider"
  providers = { aws = aws.relay }

  vpc_id = "vpc-0aaaaaaaaaaaaaaa1"
  subnets = {
    euc1-az1 = { subnet_id = "subnet-0aaaaaaaaaaaaaaa1", address = "10.0.1.7" }
    euc1-az2 = { subnet_id = "subnet-0aaaaaaaaaaaaaaa2", address = "10.0.2.7" }
  }
  listeners = {
    data = { port = 443, target_port = 7410 }
    nats = { port = 4222, target_port = 4222, proxy_protocol = false, server_speaks_first = true }
  }
  target_security_group_id = "sg-0aaaaaaaaaaaaaaa1"
  principals               = ["arn:aws:iam::222222222222:root"]
  accepted_endpoints       = var.accepted_endpoints
  alarm_topic_arns         = ["arn:aws:sns:eu-central-1:111111111111:pages"]
  connection_topic_arn     = "arn:aws:sns:eu-central-1:111111111111:endpoints"
  # For an example that comes and goes; leave it on where clients depend on it.
  deletion_protection = false
}

module "iam" {
  source    = "../../iam"
  providers = { aws = aws.relay }

  cluster_name     = "private"
  service_accounts = { keda = "keda-operator" }
}

module "consumer" {
  source    = "../../consumer"
  providers = { aws = aws.shop }

  vpc_id                    = "vpc-0bbbbbbbbbbbbbbb1"
  subnet_ids                = ["subnet-0bbbbbbbbbbbbbbb1", "subnet-0bbbbbbbbbbbbbbb2"]
  service_name              = module.provider.service_name
  ports                     = [443, 4222]
  client_security_group_ids = ["sg-0bbbbbbbbbbbbbbb1"]
  dns_name                  = "relay.internal.example.com"
}

output "proxy_trusted" {
  description = "For relay's listen.proxy_trusted."
  value       = module.provider.proxy_trusted
}

output "endpoint_id" {
  description = "The client's endpoint: accept it, and give it the client's name in relay."
  value       = module.consumer.endpoint_id
}

output "server" {
  description = "Where the client finds relay."
  value       = module.consumer.server
}

output "policies" {
  description = "The policies of relay's roles."
  value       = module.iam.policies
}
