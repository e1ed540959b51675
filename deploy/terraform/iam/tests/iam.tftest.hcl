mock_provider "aws" {
  mock_data "aws_region" {
    defaults = { region = "eu-central-1" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "111111111111" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws", dns_suffix = "amazonaws.com" }
  }
}

run "a_server_may_make_reply_queues_and_no_others" {
  assert {
    condition     = [for statement in jsondecode(output.policies.serving).Statement : statement.Resource if contains(statement.Action, "sqs:CreateQueue")] == ["arn:aws:sqs:eu-central-1:111111111111:relay-_reply_*"]
    error_message = "a server may create queues beside reply queues"
  }
  assert {
    condition     = length([for statement in jsondecode(output.policies.working).Statement : statement if contains(statement.Action, "sqs:CreateQueue")]) == 0
    error_message = "a worker may create queues"
  }
}

run "nobody_has_rights_on_keys_that_were_not_named" {
  assert {
    condition     = alltrue([for policy in output.policies : !strcontains(policy, "kms:")])
    error_message = "a role has rights on keys although none was named"
  }
}

run "named_keys_are_used_through_the_two_services_alone" {
  variables {
    kms_key_arns = ["arn:aws:kms:eu-central-1:111111111111:key/01234567-89ab-cdef-0123-456789abcdef"]
  }
  assert {
    condition     = [for statement in jsondecode(output.policies.serving).Statement : statement.Condition.StringLike["kms:ViaService"] if try(statement.Sid, "") == "RelayKeys"] == [["dynamodb.eu-central-1.amazonaws.com", "sqs.eu-central-1.amazonaws.com"]]
    error_message = "a key may be used outside of SQS and DynamoDB"
  }
}

run "keda_reads_lengths_and_nothing_else" {
  variables {
    cluster_name     = "private"
    service_accounts = { keda = "keda-operator" }
  }
  assert {
    condition     = flatten([for statement in jsondecode(output.policies.keda).Statement : statement.Action]) == ["sqs:GetQueueAttributes"]
    error_message = "KEDA may do more than read the lengths of queues"
  }
  assert {
    condition     = aws_eks_pod_identity_association.each["keda"].namespace == "keda" && aws_eks_pod_identity_association.each["serving"].namespace == "relay"
    error_message = "a role is given to a service account of another namespace"
  }
}

run "roles_are_for_pods_alone" {
  assert {
    condition     = alltrue([for role in aws_iam_role.each : jsondecode(role.assume_role_policy).Statement[0].Principal == { Service = "pods.eks.amazonaws.com" }])
    error_message = "somebody else than pods may take a role"
  }
}

run "a_prefix_of_every_queue" {
  command = plan
  variables {
    prefix = ""
  }
  expect_failures = [var.prefix]
}

run "every_key_of_the_account" {
  command = plan
  variables {
    kms_key_arns = ["arn:aws:kms:eu-central-1:111111111111:key/*"]
  }
  expect_failures = [var.kms_key_arns]
}
