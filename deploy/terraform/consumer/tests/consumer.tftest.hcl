mock_provider "aws" {
  mock_data "aws_region" {
    defaults = { region = "eu-central-1" }
  }
  mock_data "aws_vpc_endpoint_service" {
    defaults = { availability_zones = ["eu-central-1a", "eu-central-1b"] }
  }
  mock_data "aws_subnet" {
    defaults = { id = "subnet-0bbbbbbbbbbbbbbb1", vpc_id = "vpc-0bbbbbbbbbbbbbbb1", availability_zone = "eu-central-1a" }
  }
  mock_resource "aws_vpc_endpoint" {
    defaults = { dns_entry = [{ dns_name = "vpce-1-abc.vpce-svc-1.eu-central-1.vpce.amazonaws.com", hosted_zone_id = "Z1" }, { dns_name = "zonal", hosted_zone_id = "Z1" }] }
  }
}

variables {
  vpc_id                    = "vpc-0bbbbbbbbbbbbbbb1"
  subnet_ids                = ["subnet-0bbbbbbbbbbbbbbb1"]
  service_name              = "com.amazonaws.vpce.eu-central-1.vpce-svc-0123456789abcdef0"
  client_security_group_ids = ["sg-0bbbbbbbbbbbbbbb1"]
}

run "the_endpoint_is_an_interface_with_its_own_group" {
  assert {
    condition     = aws_vpc_endpoint.relay.vpc_endpoint_type == "Interface" && aws_vpc_endpoint.relay.security_group_ids == toset([aws_security_group.endpoint.id])
    error_message = "the endpoint is of another kind, or has the VPC's default group, which lets in itself alone"
  }
  assert {
    condition     = !aws_vpc_endpoint.relay.private_dns_enabled
    error_message = "private DNS is asked for before the endpoint is accepted, which AWS refuses"
  }
}

run "clients_are_let_in_at_the_endpoint_and_out_at_their_own_group" {
  variables {
    ports        = [443, 4222]
    client_cidrs = ["10.9.0.0/16"]
  }
  assert {
    condition     = toset([for rule in aws_vpc_security_group_ingress_rule.groups : rule.from_port]) == toset([443, 4222]) && alltrue([for rule in aws_vpc_security_group_ingress_rule.groups : rule.security_group_id == aws_security_group.endpoint.id && rule.referenced_security_group_id == "sg-0bbbbbbbbbbbbbbb1"])
    error_message = "the endpoint's group does not let the clients in"
  }
  assert {
    condition     = alltrue([for rule in aws_vpc_security_group_egress_rule.clients : rule.security_group_id == "sg-0bbbbbbbbbbbbbbb1" && rule.referenced_security_group_id == aws_security_group.endpoint.id]) && length(aws_vpc_security_group_egress_rule.clients) == 2
    error_message = "the clients' group does not let them out to the endpoint"
  }
  assert {
    condition     = toset([for rule in aws_vpc_security_group_ingress_rule.ranges : rule.cidr_ipv4]) == toset(["10.9.0.0/16"])
    error_message = "ranges are not let in"
  }
}

run "the_name_leads_to_the_endpoint_of_all_zones" {
  variables {
    dns_name = "relay.internal.example.com"
  }
  assert {
    condition     = aws_route53_record.relay[0].alias[0].name == aws_vpc_endpoint.relay.dns_entry[0].dns_name && aws_route53_record.relay[0].zone_id == aws_route53_zone.relay[0].zone_id
    error_message = "the alias does not lead to the endpoint's regional name"
  }
  assert {
    condition     = aws_route53_zone.relay[0].name == "relay.internal.example.com" && output.server == "https://relay.internal.example.com"
    error_message = "the zone is wider than the name, and hides others"
  }
}

run "private_dns_comes_after_the_endpoint" {
  variables {
    private_dns = true
  }
  assert {
    condition     = aws_vpc_endpoint_private_dns.relay[0].vpc_endpoint_id == aws_vpc_endpoint.relay.id && aws_vpc_endpoint_private_dns.relay[0].private_dns_enabled
    error_message = "private DNS is not switched on"
  }
}

run "a_service_of_another_region_is_reached_from_every_zone" {
  variables {
    service_name   = "com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0"
    service_region = "us-east-1"
  }
  assert {
    condition     = aws_vpc_endpoint.relay.service_region == "us-east-1"
    error_message = "the endpoint does not name the service's region"
  }
}

run "a_service_of_another_region_without_its_region" {
  command = plan
  variables {
    service_name = "com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0"
  }
  expect_failures = [var.service_region]
}

run "a_zone_in_which_the_service_is_not" {
  command = plan
  override_data {
    target = data.aws_vpc_endpoint_service.relay
    values = { availability_zones = ["eu-central-1c"] }
  }
  expect_failures = [aws_vpc_endpoint.relay]
}

run "two_subnets_of_one_zone" {
  command = plan
  variables {
    subnet_ids = ["subnet-0bbbbbbbbbbbbbbb1", "subnet-0bbbbbbbbbbbbbbb2"]
  }
  expect_failures = [aws_vpc_endpoint.relay]
}

run "a_subnet_of_another_vpc" {
  command = plan
  variables {
    vpc_id = "vpc-0ccccccccccccccc1"
  }
  expect_failures = [aws_vpc_endpoint.relay]
}

run "a_service_of_aws_itself" {
  command = plan
  variables {
    service_name = "com.amazonaws.eu-central-1.sqs"
  }
  expect_failures = [var.service_name]
}

run "an_endpoint_that_nobody_may_reach" {
  command = plan
  variables {
    client_security_group_ids = []
  }
  expect_failures = [var.client_cidrs]
}

run "two_ways_to_one_name" {
  command = plan
  variables {
    private_dns = true
    dns_name    = "relay.internal.example.com"
  }
  expect_failures = [var.private_dns]
}
